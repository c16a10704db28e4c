// mlp_forward: one task on a thread; n P multiply-adds forward, 2 n P backward.
#include "kernels.h"
#include "mlp_task.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
void mlp_forward_fwd(const MlpForward<R>& c) {
  const int64_t n = c.count, in = c.shape.width[0], out = c.shape.width[c.shape.layers];
  for_each_task<R>(c.shape, n, false, 0, [&](Task<R>& task, int64_t t) {
    task.load_params(c.params, t);
    task.load_inputs(c.x + t * n * in, n);
    task.forward();
    task.store_outputs(c.out + t * n * out);
  });
}

template <class R>
void mlp_forward_bwd(const MlpForward<R>& c) {
  const int64_t n = c.count, in = c.shape.width[0], out = c.shape.width[c.shape.layers];
  for_each_task<R>(c.shape, n, false, 0, [&](Task<R>& task, int64_t t) {
    task.load_params(c.params, t);
    task.load_inputs(c.x + t * n * in, n);
    task.forward();
    task.set_output_gradient(c.dout + t * n * out);
    task.backward();
    store_params(task, task.grad, c.dparams, t);
    if (c.dx) task.store_dx(c.dx + t * n * in, R(1), false);
  });
}

template void mlp_forward_fwd(const MlpForward<float>&);
template void mlp_forward_fwd(const MlpForward<double>&);
template void mlp_forward_bwd(const MlpForward<float>&);
template void mlp_forward_bwd(const MlpForward<double>&);

}  // namespace fastmeta::FASTMETA_ISA
