// mlp_loss without gradients: a block takes a task; n P multiply-adds, nothing but the loss leaves the chip. With gradients
// it is mlp_grad's kernel.
#include "kernels.h"
#include "mlp_launch.cuh"
#include "mlp_passes.cuh"

namespace fastmeta::cuda {
namespace {

template <class R>
__global__ void __launch_bounds__(kMaxThreads, 2)
    loss_kernel(const __grid_constant__ MlpLoss<R> c, const Need need, const Block block) {
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
  }
}

Need need_of_loss() {
  Need need;
  need.loss = true;
  return need;
}

template <class R>
bool with_gradients(const MlpLoss<R>& c) {
  return any_asked(c.dparams) || c.grads.dx || c.grads.dy;
}

}  // namespace

template <class R>
const char* mlp_loss(const MlpLoss<R>& c, void* workspace, void* stream) {
  if (with_gradients(c)) return mlp_grad(c, workspace, stream);
  const Need need = need_of_loss();
  return launch_tasks(loss_kernel<R>, c, need, plan(c.shape, c.params, c.examples.count, need), workspace, stream);
}

template <class R>
int64_t mlp_loss_workspace(const MlpLoss<R>& c) {
  if (with_gradients(c)) return mlp_grad_workspace(c);
  return workspace_of(plan(c.shape, c.params, c.examples.count, need_of_loss()));
}

FASTMETA_LAUNCHER_TYPES(mlp_loss, MlpLoss)

}  // namespace fastmeta::cuda
