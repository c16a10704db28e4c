// mlp_hvp, and the backward of mlp_grad: one task on a thread; 9 n P multiply-adds with the gradient that it needs,
// 5 n P for Gauss-Newton, which needs none.
#include "kernels.h"
#include "mlp_task.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
void mlp_hvp(const MlpCurvature<R>& c) {
  const int64_t n = c.examples.count, in = c.shape.width[0], out = c.shape.width[c.shape.layers];
  for_each_task<R>(c.shape, n, true, 0, [&](Task<R>& task, int64_t t) {
    const R dloss = c.dloss ? c.dloss[t] : R(0);
    task.load_params(c.params, t);
    task.load_vectors(c.vectors, t);
    task.load_inputs(c.examples.x + t * n * in, n);
    task.forward();
    const void* y = targets_of(c.shape, c.examples, t);
    task.output_gradient(y);
    if (!c.gauss_newton) task.backward();
    task.curvature(y, c.gauss_newton);
    if (c.dloss)
      for_each_row(task, [&](int tensor, int l, int64_t from, int64_t, int64_t columns) {
        R* product = (tensor % 2 ? task.hv.b[l] : task.hv.w[l]) + from;
        const R* gradient = (tensor % 2 ? task.grad.b[l] : task.grad.w[l]) + from;
        for (int64_t j = 0; j < columns; j++) product[j] += dloss * gradient[j];
      });
    store_params(task, task.hv, c.dparams, t);
    if (c.grads.dx) {
      task.store_dx(c.grads.dx + t * n * in, dloss, false);
      task.store_rdx(c.grads.dx + t * n * in, R(1), true);
    }
    if (c.grads.dy) {
      task.store_dy(c.grads.dy + t * n * out, dloss, false);
      task.store_rdy(c.grads.dy + t * n * out, R(1), true);
    }
  });
}

template void mlp_hvp(const MlpCurvature<float>&);
template void mlp_hvp(const MlpCurvature<double>&);

}  // namespace fastmeta::FASTMETA_ISA
