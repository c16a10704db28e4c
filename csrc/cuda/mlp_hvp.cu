// mlp_hvp, and the backward of mlp_grad: a block takes a task; 8 n P multiply-adds. The multiple dloss of the gradient costs
// nothing: added to the tangent of dL/dz in the last layer, it runs back through the same products. Gauss-Newton, 5 n P: that
// tangent runs back in the place of dL/dz, without tangents of its own.
#include "kernels.h"
#include "mlp_launch.cuh"
#include "mlp_passes.cuh"

namespace fastmeta::cuda {
namespace {

template <class R>
__global__ void __launch_bounds__(kMaxThreads, 2)
    hvp_kernel(const __grid_constant__ MlpCurvature<R> c, const Need need, const Block block) {
  FASTMETA_DYNAMIC_SHARED(shared);
  FASTMETA_SHARED(Task<R>, s);
  const int64_t n = c.examples.count;
  set_up(s, c.shape, c.params, n, need, block, shared);
  for (int64_t t = blockIdx.x; t < c.shape.tasks; t += gridDim.x) {
    __syncthreads();
    load_params(s, c.params, t);
    load_params(s, c.vectors, t, true);
    load_examples(s, c.examples.x, c.examples.y, n, t);
    __syncthreads();
    forward<R, true>(s, true);
    output_gradient(s, true, c.dloss ? c.dloss[t] : R(0));
    if (c.gauss_newton) {
      copy(s.last().d, s.last().rd, n * s.last().out);
      __syncthreads();
    }
    backward<R, true>(s, !c.gauss_newton);
    gradients<R, true>(s, !c.gauss_newton, Asked<R>{c.dparams, t, 2 * s.layers, examples_of(s, c.grads, n, t)});
  }
}

Need need_of_curvature() {
  Need need;
  need.loss = need.gradient = need.curvature = true;
  return need;
}

}  // namespace

template <class R>
const char* mlp_hvp(const MlpCurvature<R>& c, void* workspace, void* stream) {
  const Need need = need_of_curvature();
  return launch_tasks(hvp_kernel<R>, c, need, plan(c.shape, c.params, c.examples.count, need), workspace, stream);
}

template <class R>
int64_t mlp_hvp_workspace(const MlpCurvature<R>& c) {
  return workspace_of(plan(c.shape, c.params, c.examples.count, need_of_curvature()));
}

FASTMETA_LAUNCHER_TYPES(mlp_hvp, MlpCurvature)

}  // namespace fastmeta::cuda
