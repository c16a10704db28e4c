// mlp_meta_loss: by task, a block goes from the inner steps through the query loss to its whole meta-gradient; the parameters
// before each step stay with the block. 3 n P multiply-adds a step, 8 n P a step back.
#include "runtime/cuda/kernels.h"
#include "inner/cuda/mlp_gram.h"
#include "inner/cuda/mlp_inner.cuh"
#include "inner/cuda/mlp_inner_layers.h"
#include "inner/cuda/mlp_launch.cuh"

namespace fastmeta::cuda {
namespace {

template <class R>
__global__ void __launch_bounds__(kMaxThreads, kWideBlocks)
    meta_loss_kernel(const __grid_constant__ MlpMetaLoss<R> c, const Need need, const Block block) {
  const int64_t S = c.support.count, Q = c.query.count;
  each_task<R>(c.shape, c.params, S > Q ? S : Q, need, block, [&](Task<R>& s, int64_t t) {
    load_params(s, c.params, t);
    load_examples(s, c.support, t);
    Inner<R> inner{s, c.rates, c.drates, c.support_grads, c.query_grads, c.steps, t, c.first_order};
    const bool runs = c.with_grads && begin_chain(inner, S);
    __syncthreads();
    const int K = int(c.steps);                      // 32 bits, as i: registers are short
    for (int i = 0; i <= (runs ? 2 * K : K); i++) {  // K steps down, the query, K steps back
      inner.stage = i < K ? Stage::descend : i == K ? Stage::query : Stage::chain;
      inner.step = i < K ? i : 2 * K - i;
      if (i < K && c.with_grads) copy(s.kept + inner.step * s.params, s.theta, s.params);
      if (i == K) load_examples(s, c.query, t, c.query_grads.dweights);
      if (i == K + 1) load_examples(s, c.support, t, c.first_order ? nullptr : c.support_grads.dweights, true);
      if (i > K) load_step(inner, s.kept);
      __syncthreads();
      const R loss = run_stage<R, true>(inner, i < K || c.with_grads);
      if (i == K && threadIdx.x == 0) c.loss[t] = loss;
    }
    if (c.with_grads) scatter(s, s.cotangent, c.dparams, t);
  });
}

template <class R>
void by_layer(const MlpMetaLoss<R>& c, const Need& need, Queue& queue) {
  const int64_t S = c.support.count, Q = c.query.count, K = c.steps;
  layerwise::Net<R> net = layerwise::lay_out(queue, c.shape, c.params, S > Q ? S : Q, need);
  layerwise::Inner<R> inner{queue, net, c.rates, c.drates, c.support_grads, K, c.first_order};
  const int64_t slots = c.with_grads || !K ? K : 1;  // of the parameters after each step
  R* trajectory = queue.arena().take<R>(c.shape.tasks * slots * layerwise::padded_params(net.task));
  const auto after = [&](int64_t k) {
    return layerwise::at_step(net.task, trajectory, c.with_grads ? k - 1 : 0, slots, layerwise::kAligned);
  };
  const auto theta = [&](int64_t k) { return k ? layerwise::as_const(after(k)) : c.params; };
  net.examples = c.support;
  for (int64_t k = 0; k < K; k++) inner.descend(k, theta(k), after(k + 1));
  net.examples = c.query;
  net.params = theta(K);
  layerwise::forward(queue, net);
  layerwise::output(queue, net, {c.loss, layerwise::of_targets(net, c.query_grads.dy), false, nullptr, c.query_grads.dweights});
  if (!c.with_grads) return;
  layerwise::backward(queue, net);
  const MlpParams<R> v = layerwise::complete(queue, net, c.dparams);
  layerwise::gradients(queue, net, false, layerwise::asked(net, v, c.query_grads.dx));
  net.examples = c.support;
  inner.run_back(layerwise::as_const(v), v, theta);
}

template <class R>
Way<MlpMetaLoss<R>> way(const MlpMetaLoss<R>& c) {
  Need need;
  need.loss = need.gradient = need.adapts = true;
  need.chain = c.with_grads;
  need.curvature = c.with_grads && !c.first_order;
  for (int l = 0; c.with_grads && l < c.shape.layers; l++)
    need.kept += c.steps * c.shape.width[l + 1] * (c.shape.width[l] + (c.params.bias[l] ? 1 : 0));
  return {need, c.support.count > c.query.count ? c.support.count : c.query.count, meta_loss_kernel<R>, by_layer<R>};
}

}  // namespace

template <class R>
const char* mlp_meta_loss(const MlpMetaLoss<R>& c, void* workspace, void* stream) {
  if (!gram_pays(c)) return launch_way(c, way(c), workspace, stream);
  Queue queue(true, workspace, stream);
  by_gram(c, queue);
  return queue.error();
}
template <class R>
int64_t mlp_meta_loss_workspace(const MlpMetaLoss<R>& c) {
  if (!gram_pays(c)) return workspace_of(c, way(c));
  Queue queue(false, nullptr, nullptr);
  by_gram(c, queue);
  return queue.bytes();
}
template const char* mlp_meta_loss(const MlpMetaLoss<float>&, void*, void*);
template const char* mlp_meta_loss(const MlpMetaLoss<double>&, void*, void*);
template int64_t mlp_meta_loss_workspace(const MlpMetaLoss<float>&);
template int64_t mlp_meta_loss_workspace(const MlpMetaLoss<double>&);

}  // namespace fastmeta::cuda
