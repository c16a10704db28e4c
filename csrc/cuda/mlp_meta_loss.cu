// mlp_meta_loss: a block takes a task from the inner steps through the query loss to its whole meta-gradient; the parameters
// before each step stay with the block. 3 n P multiply-adds a step, 8 n P a step back.
#include "kernels.h"
#include "mlp_inner.cuh"
#include "mlp_launch.cuh"

namespace fastmeta::cuda {
namespace {

template <class R>
__global__ void __launch_bounds__(kMaxThreads, 2)
    meta_loss_kernel(const __grid_constant__ MlpMetaLoss<R> c, const Need need, const Block block) {
  FASTMETA_DYNAMIC_SHARED(shared);
  FASTMETA_SHARED(Task<R>, s);
  const int64_t S = c.support.count, Q = c.query.count, K = c.steps;
  set_up(s, c.shape, c.params, S > Q ? S : Q, need, block, shared);
  for (int64_t t = blockIdx.x; t < c.shape.tasks; t += gridDim.x) {
    __syncthreads();
    load_params(s, c.params, t);
    load_examples(s, c.support.x, c.support.y, S, t);
    Inner<R> inner{s, c.rates, c.drates, c.support_grads, c.query_grads, K, t, c.first_order};
    const bool runs = c.with_grads && begin_chain(inner, S);
    __syncthreads();
    for (int64_t i = 0; i <= (runs ? 2 * K : K); i++) {  // K steps down, the query, K steps back
      inner.stage = i < K ? Stage::descend : i == K ? Stage::query : Stage::chain;
      inner.step = i < K ? i : 2 * K - i;
      if (i < K && c.with_grads) copy(s.kept + i * s.params, s.theta, s.params);
      if (i == K) load_examples(s, c.query.x, c.query.y, Q, t);
      if (i == K + 1) load_examples(s, c.support.x, c.support.y, S, t);
      if (i > K) load_step(inner, s.kept);
      __syncthreads();
      const R loss = run_stage<R, true>(inner, i < K || c.with_grads);
      if (i == K && threadIdx.x == 0) c.loss[t] = loss;
    }
    if (c.with_grads) scatter(s, s.cotangent, c.dparams, t);
  }
}

template <class R>
Need need_of(const MlpMetaLoss<R>& c) {
  Need need;
  need.loss = need.gradient = need.adapts = true;
  need.chain = c.with_grads;
  need.curvature = c.with_grads && !c.first_order;
  for (int l = 0; c.with_grads && l < c.shape.layers; l++)
    need.kept += c.steps * c.shape.width[l + 1] * (c.shape.width[l] + (c.params.bias[l] ? 1 : 0));
  return need;
}

template <class R>
Plan plan(const MlpMetaLoss<R>& c, const Need& need) {
  return plan(c.shape, c.params, c.support.count > c.query.count ? c.support.count : c.query.count, need);
}

}  // namespace

template <class R>
const char* mlp_meta_loss(const MlpMetaLoss<R>& c, void* workspace, void* stream) {
  const Need need = need_of(c);
  return launch_tasks(meta_loss_kernel<R>, c, need, plan(c, need), workspace, stream);
}

template <class R>
int64_t mlp_meta_loss_workspace(const MlpMetaLoss<R>& c) {
  return workspace_of(plan(c, need_of(c)));
}

FASTMETA_LAUNCHER_TYPES(mlp_meta_loss, MlpMetaLoss)

}  // namespace fastmeta::cuda
