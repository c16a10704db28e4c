// mlp_loss and mlp_grad: one task on a thread; n P multiply-adds for the loss, 3 n P with its gradient.
#include "kernels.h"
#include "mlp_task.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
void mlp_loss(const MlpLoss<R>& c) {
  const int64_t n = c.examples.count, in = c.shape.width[0], out = c.shape.width[c.shape.layers];
  const bool with_grads = any_asked(c.dparams) || c.grads.dx || c.grads.dy;
  for_each_task<R>(c.shape, n, false, 0, [&](Task<R>& task, int64_t t) {
    task.load_params(c.params, t);
    task.load_inputs(c.examples.x + t * n * in, n);
    task.forward();
    c.loss[t] = task.output_gradient(targets_of(c.shape, c.examples, t));
    if (!with_grads) return;
    task.backward();
    store_params(task, task.grad, c.dparams, t);
    if (c.grads.dx) task.store_dx(c.grads.dx + t * n * in, R(1), false);
    if (c.grads.dy) task.store_dy(c.grads.dy + t * n * out, R(1), false);
  });
}

template void mlp_loss(const MlpLoss<float>&);
template void mlp_loss(const MlpLoss<double>&);

}  // namespace fastmeta::FASTMETA_ISA
