// mlp_forward: a block takes a task; n P multiply-adds forward, 3 n P with the gradients. Forward writes the outputs straight
// to the caller's memory; hidden activations stay on chip as long as they fit.
#include "kernels.h"
#include "mlp_launch.cuh"
#include "mlp_passes.cuh"

namespace fastmeta::cuda {
namespace {

template <class R>
__global__ void __launch_bounds__(kMaxThreads, 2)
    forward_kernel(const __grid_constant__ MlpForward<R> c, const Need need, const Block block) {
  FASTMETA_DYNAMIC_SHARED(shared);
  FASTMETA_SHARED(Task<R>, s);
  set_up(s, c.shape, c.params, c.count, need, block, shared);
  for (int64_t t = blockIdx.x; t < c.shape.tasks; t += gridDim.x) {
    __syncthreads();
    load_params(s, c.params, t);
    load_examples(s, c.x, nullptr, c.count, t);
    if (threadIdx.x == 0) s.last().a = c.out + t * c.count * s.last().out;
    __syncthreads();
    forward<R, false>(s);
  }
}

template <class R>
__global__ void __launch_bounds__(kMaxThreads, 2)
    forward_bwd_kernel(const __grid_constant__ MlpForward<R> c, const Need need, const Block block) {
  FASTMETA_DYNAMIC_SHARED(shared);
  FASTMETA_SHARED(Task<R>, s);
  set_up(s, c.shape, c.params, c.count, need, block, shared);
  for (int64_t t = blockIdx.x; t < c.shape.tasks; t += gridDim.x) {
    __syncthreads();
    load_params(s, c.params, t);
    load_examples(s, c.x, nullptr, c.count, t);
    copy(s.last().d, c.dout + t * c.count * s.last().out, c.count * s.last().out);
    __syncthreads();
    forward<R, false>(s);
    backward<R, false>(s);
    gradients<R, false>(s, false, Asked<R>{c.dparams, t, 2 * s.layers, examples_of<R>(s, {c.dx, nullptr}, c.count, t)});
  }
}

Need need_of(bool gradient) {
  Need need;
  need.loss = need.gradient = gradient;
  return need;
}

}  // namespace

template <class R>
const char* mlp_forward_fwd(const MlpForward<R>& c, void* workspace, void* stream) {
  const Need need = need_of(false);
  return launch_tasks(forward_kernel<R>, c, need, plan(c.shape, c.params, c.count, need), workspace, stream);
}

template <class R>
const char* mlp_forward_bwd(const MlpForward<R>& c, void* workspace, void* stream) {
  const Need need = need_of(true);
  return launch_tasks(forward_bwd_kernel<R>, c, need, plan(c.shape, c.params, c.count, need), workspace, stream);
}

template <class R>
int64_t mlp_forward_fwd_workspace(const MlpForward<R>& c) {
  return workspace_of(plan(c.shape, c.params, c.count, need_of(false)));
}

template <class R>
int64_t mlp_forward_bwd_workspace(const MlpForward<R>& c) {
  return workspace_of(plan(c.shape, c.params, c.count, need_of(true)));
}

FASTMETA_LAUNCHER_TYPES(mlp_forward_fwd, MlpForward)
FASTMETA_LAUNCHER_TYPES(mlp_forward_bwd, MlpForward)

}  // namespace fastmeta::cuda
