// mlp_grad, and mlp_loss with gradients: a block takes a task; 3 n P multiply-adds. The backward of mlp_grad is mlp_hvp's
// kernel.
#include "kernels.h"
#include "mlp_launch.cuh"
#include "mlp_passes.cuh"

namespace fastmeta::cuda {
namespace {

template <class R>
__global__ void __launch_bounds__(kMaxThreads, 2)
    grad_kernel(const __grid_constant__ MlpLoss<R> c, const Need need, const Block block) {
  FASTMETA_DYNAMIC_SHARED(shared);
  FASTMETA_SHARED(Task<R>, s);
  set_up(s, c.shape, c.params, c.examples.count, need, block, shared);
  for (int64_t t = blockIdx.x; t < c.shape.tasks; t += gridDim.x) {
    __syncthreads();
    load_params(s, c.params, t);
    load_examples(s, c.examples.x, c.examples.y, c.examples.count, t);
    __syncthreads();
    forward<R, false>(s);
    const R loss = output_gradient(s);
    if (threadIdx.x == 0) c.loss[t] = loss;
    backward<R, false>(s);
    gradients<R, false>(s, false, Asked<R>{c.dparams, t, 2 * s.layers, examples_of(s, c.grads, c.examples.count, t)});
  }
}

Need need_of_grad() {
  Need need;
  need.loss = need.gradient = true;
  return need;
}

}  // namespace

template <class R>
const char* mlp_grad(const MlpLoss<R>& c, void* workspace, void* stream) {
  const Need need = need_of_grad();
  return launch_tasks(grad_kernel<R>, c, need, plan(c.shape, c.params, c.examples.count, need), workspace, stream);
}

template <class R>
int64_t mlp_grad_workspace(const MlpLoss<R>& c) {
  return workspace_of(plan(c.shape, c.params, c.examples.count, need_of_grad()));
}

FASTMETA_LAUNCHER_TYPES(mlp_grad, MlpLoss)

}  // namespace fastmeta::cuda
