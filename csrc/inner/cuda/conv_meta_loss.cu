// conv_meta_loss: the inner steps, the query loss, and the meta-gradient back through both; see conv_inner.h.
#include "inner/cuda/conv_inner.h"
#include "inner/cuda/conv_launch.h"

namespace fastmeta::cuda {
namespace {

template <class R>
int64_t examples_of(const ConvMetaLoss<R>& c) {
  return c.support.count > c.query.count ? c.support.count : c.query.count;
}

template <class R>
void run(const ConvMetaLoss<R>& c, Queue& queue) {
  namespace by = layerwise;
  const int64_t K = c.steps, slots = c.with_grads || !K ? K : 1;  // of the parameters after each step
  by::ConvInner<R, ConvMetaLoss<R>> inner(queue, c, examples_of(c), c.with_grads, c.with_grads);
  R* trajectory = queue.arena().take<R>(c.shape.tasks * slots * by::params_size(c.shape, c.params, by::kAligned));
  const auto after = [&](int64_t k) { return by::params_at(c.shape, c.params, trajectory, c.with_grads ? k - 1 : 0, slots, by::kAligned); };
  const auto theta = [&](int64_t k) { return k ? by::as_const(after(k)) : c.params; };
  for (int64_t k = 0; k < K; k++) inner.descend(k, theta(k), after(k + 1));
  by::ConvPass<R> query = inner.pass(K, c.query);
  if (c.outputs) query.logits = c.outputs;
  by::forward(queue, inner.convs, query, theta(K));
  const by::Output<R> what{nullptr, by::of_targets(c.shape, c.query.count, c.query_grads.dy), false, nullptr, c.query_grads.dweights};
  by::head(queue, inner.convs, query, theta(K), {true, true, what, c.with_grads});
  by::ConvTargets<R> to;
  ConvParams<R> v;
  if (c.with_grads) {
    by::backward(queue, inner.convs, query, theta(K), 0);
    v = by::complete(queue, c.shape, c.params, c.dparams);
    to = by::asked(c.shape, c.query.count, v, c.query_grads.dx);
    inner.aim(to, K - 1);
  }
  to.loss = {c.loss, 1};
  by::gradients(queue, inner.convs, query, theta(K), to);
  if (!c.with_grads) return;
  inner.run_back(by::as_const(v), v, theta);
}

}  // namespace

FASTMETA_DEFINE_CONV(conv_meta_loss, ConvMetaLoss, run)

}  // namespace fastmeta::cuda
