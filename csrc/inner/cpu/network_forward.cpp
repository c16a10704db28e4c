// mlp_forward and conv_forward: one task on a thread; backward takes the forward pass again. n P multiply-adds forward, 3 n P backward.
#include "inner/cpu/conv_network.h"
#include "inner/cpu/mlp_network.h"

namespace fastmeta::FASTMETA_ISA {

template <class R, class N>
void network_forward_fwd(const ForwardCall<R, N>& c) {
  const LayoutOf<R, N> layout(c.shape, c.params, false);
  const int64_t n = c.count, in = c.shape.example_size(), out = c.shape.output_size();
  for_each_task<Evaluation<R, N>>(
      c.shape, n,
      [&](Evaluation<R, N>& w, int64_t t) {
        w.forward(c.params, t, c.x + t * n * in, n);
        store_rows(w.pass.outputs(), n, out, c.out + t * n * out, layout.padded_outputs());
      },
      layout, n, false, false);
}

template <class R, class N>
void network_forward_bwd(const ForwardCall<R, N>& c) {
  const LayoutOf<R, N> layout(c.shape, c.params, c.dx);
  const int64_t n = c.count, in = c.shape.example_size(), out = c.shape.output_size();
  for_each_task<Evaluation<R, N>>(
      c.shape, n,
      [&](Evaluation<R, N>& w, int64_t t) {
        w.forward(c.params, t, c.x + t * n * in, n);
        load_rows(c.dout + t * n * out, n, out, w.pass.doutputs(), layout.padded_outputs());
        const ExampleGrads<R> grads = cleared<R>(c.shape, {c.dx}, t * n, n);
        w.network.backward(w.theta, w.pass, c.dparams.any() ? w.grad : nullptr, grads.dx);
        if (c.dparams.any()) store_block(layout, w.grad, c.dparams, t);
      },
      layout, n, true, false);
}

#define INSTANTIATE(R, N)                                      \
  template void network_forward_fwd(const ForwardCall<R, N>&); \
  template void network_forward_bwd(const ForwardCall<R, N>&);
INSTANTIATE(float, MlpShape)
INSTANTIATE(double, MlpShape)
INSTANTIATE(float, ConvNet)
INSTANTIATE(double, ConvNet)

}  // namespace fastmeta::FASTMETA_ISA
