// mlp_loss, mlp_grad, conv_loss, conv_grad: one task on a thread; n P multiply-adds for the loss, 3 n P with its gradient.
#include "inner/cpu/conv_network.h"
#include "inner/cpu/mlp_network.h"

namespace fastmeta::FASTMETA_ISA {

template <class R, class N>
void network_loss(const LossCall<R, N>& c) {
  const LayoutOf<R, N> layout(c.shape, c.params, c.grads.dx);
  const int64_t n = c.examples.count, in = c.shape.example_size();
  const bool of_params = c.dparams.any(), backward = of_params || c.grads.dx;
  for_each_task<Evaluation<R, N>>(
      c.shape, n,
      [&](Evaluation<R, N>& w, int64_t t) {
        w.forward(c.params, t, c.examples.x + t * n * in, n);
        const ExampleGrads<R> grads = cleared(c.shape, c.grads, t * n, n);
        c.loss[t] = w.network.loss(targets_of(c.shape, c.examples, t), w.pass, grads.dweights);
        if (grads.dy) subtract_rows(w.pass.doutputs(), n, c.shape.output_size(), layout.padded_outputs(), grads.dy);
        if (backward) w.network.backward(w.theta, w.pass, of_params ? w.grad : nullptr, grads.dx);
        if (of_params) store_block(layout, w.grad, c.dparams, t);
      },
      layout, n, backward, false);
}

#define INSTANTIATE(R, N) template void network_loss(const LossCall<R, N>&);
INSTANTIATE(float, MlpShape)
INSTANTIATE(double, MlpShape)
INSTANTIATE(float, ConvNet)
INSTANTIATE(double, ConvNet)

}  // namespace fastmeta::FASTMETA_ISA
