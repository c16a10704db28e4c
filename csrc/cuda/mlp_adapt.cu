// mlp_adapt: a block takes a task through all its inner steps, and back through the chain of Hessian-vector products;
// 3 n P multiply-adds a step forward, 8 n P a step backward, n P more for the gradients of rates. Kept for backward: [T, K, P].
#include "kernels.h"
#include "mlp_inner.cuh"
#include "mlp_launch.cuh"

namespace fastmeta::cuda {
namespace {

template <class R>
__global__ void __launch_bounds__(kMaxThreads, 2)
    adapt_kernel(const __grid_constant__ MlpAdapt<R> c, const Need need, const Block block) {
  FASTMETA_DYNAMIC_SHARED(shared);
  FASTMETA_SHARED(Task<R>, s);
  set_up(s, c.shape, c.params, c.support.count, need, block, shared);
  for (int64_t t = blockIdx.x; t < c.shape.tasks; t += gridDim.x) {
    __syncthreads();
    load_params(s, c.params, t);
    load_examples(s, c.support.x, c.support.y, c.support.count, t);
    __syncthreads();
    Inner<R> inner{s, c.rates, c.drates, c.support_grads, c.support_grads, c.steps, t, c.first_order};
    for (inner.step = 0; inner.step < c.steps; inner.step++) {
      if (c.trajectory) copy(c.trajectory + (t * c.steps + inner.step) * s.params, s.theta, s.params);
      run_stage<R, false>(inner);
    }
    scatter(s, s.theta, c.adapted, t);
  }
}

template <class R>
__global__ void __launch_bounds__(kMaxThreads, 2)
    adapt_bwd_kernel(const __grid_constant__ MlpAdapt<R> c, const Need need, const Block block) {
  FASTMETA_DYNAMIC_SHARED(shared);
  FASTMETA_SHARED(Task<R>, s);
  const int64_t n = c.support.count;
  set_up(s, c.shape, c.params, n, need, block, shared);
  for (int64_t t = blockIdx.x; t < c.shape.tasks; t += gridDim.x) {
    __syncthreads();
    gather(s, s.cotangent, c.dadapted, t);
    load_examples(s, c.support.x, c.support.y, n, t);
    Inner<R> inner{s, c.rates, c.drates, c.support_grads, c.support_grads, c.steps, t, c.first_order, Stage::chain};
    const bool runs = begin_chain(inner, n);
    __syncthreads();
    for (inner.step = c.steps - 1; runs && inner.step >= 0; inner.step--) {
      load_step(inner, c.trajectory + t * c.steps * s.params);
      __syncthreads();
      run_stage<R, true>(inner);
    }
    scatter(s, s.cotangent, c.dparams, t);
  }
}

template <class R>
Need need_of(const MlpAdapt<R>& c, bool chain) {
  Need need;
  need.loss = need.gradient = need.adapts = true;
  need.chain = chain;
  need.curvature = chain && !c.first_order;
  return need;
}

}  // namespace

template <class R>
const char* mlp_adapt_fwd(const MlpAdapt<R>& c, void* workspace, void* stream) {
  const Need need = need_of(c, false);
  return launch_tasks(adapt_kernel<R>, c, need, plan(c.shape, c.params, c.support.count, need), workspace, stream);
}

template <class R>
const char* mlp_adapt_bwd(const MlpAdapt<R>& c, void* workspace, void* stream) {
  const Need need = need_of(c, true);
  return launch_tasks(adapt_bwd_kernel<R>, c, need, plan(c.shape, c.params, c.support.count, need), workspace, stream);
}

template <class R>
int64_t mlp_adapt_fwd_workspace(const MlpAdapt<R>& c) {
  return workspace_of(plan(c.shape, c.params, c.support.count, need_of(c, false)));
}

template <class R>
int64_t mlp_adapt_bwd_workspace(const MlpAdapt<R>& c) {
  return workspace_of(plan(c.shape, c.params, c.support.count, need_of(c, true)));
}

FASTMETA_LAUNCHER_TYPES(mlp_adapt_fwd, MlpAdapt)
FASTMETA_LAUNCHER_TYPES(mlp_adapt_bwd, MlpAdapt)

}  // namespace fastmeta::cuda
