// conv_hvp, and the backward of conv_grad: a pass and its tangents. The multiple dloss of the gradient is added to the tangent of that to
// the outputs, and runs back with it. Gauss-Newton: that tangent runs back in the place of the gradient; see conv_layers.h.
#include "inner/cuda/conv_launch.h"

namespace fastmeta::cuda {
namespace {

template <class R>
void run(const ConvCurvature<R>& c, Queue& queue) {
  namespace by = layerwise;
  const int64_t n = c.examples.count;
  const auto to = by::asked(c.shape, n, c.dparams, c.grads.dx);
  const auto convs = by::lay_out<R>(queue, c.shape, n, true, n);
  auto pass = by::only_pass(queue, c.shape, c.params, n, true);
  pass.load(c.examples);
  by::forward(queue, convs, pass, c.params);
  by::tangents_forward(queue, convs, pass, c.params, c.vectors);
  by::output(queue, pass.head, {nullptr, by::of_targets(pass.head, c.grads.dy), true, c.dloss, c.grads.dweights});
  if (c.gauss_newton) pass.head.task.layer[0].d = convs.rdlogits;
  const int lowest = to.lowest(c.shape);
  by::backward(queue, convs, pass, c.params, lowest);
  if (!c.gauss_newton) by::tangents_backward(queue, convs, pass, c.params, c.vectors, lowest);
  by::gradients(queue, convs, pass, c.params, to, c.gauss_newton ? nullptr : &c.vectors);
}

template <class R>
int64_t examples_of(const ConvCurvature<R>& c) {
  return c.examples.count;
}

}  // namespace

FASTMETA_DEFINE_CONV(conv_hvp, ConvCurvature, run)

}  // namespace fastmeta::cuda
