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
  by::forward(queue, inner.convs, query, theta(K));
  by::output(queue, query.head, {c.loss, by::of_targets(query.head, c.query_grads.dy), false, nullptr, c.query_grads.dweights});
  if (c.outputs) {
    const int64_t size = c.query.count * c.shape.outputs;
    by::scale(queue, c.shape.tasks, by::Scalings<R>{1, {{{c.outputs, size}, {query.head.task.layer[0].a, size}, {}, false, size}}});
  }
  if (!c.with_grads) return;
  by::backward(queue, inner.convs, query, theta(K), 0);
  const ConvParams<R> v = by::complete(queue, c.shape, c.params, c.dparams);
  by::gradients(queue, inner.convs, query, theta(K), by::asked(c.shape, c.query.count, v, c.query_grads.dx));
  inner.run_back(by::as_const(v), v, theta);
}

}  // namespace

FASTMETA_DEFINE_CONV(conv_meta_loss, ConvMetaLoss, run)

}  // namespace fastmeta::cuda
