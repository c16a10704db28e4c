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
  auto pass = by::only_pass<R>(queue, c.shape, n, true);
  pass.load(c.examples);
  by::forward(queue, convs, pass, c.params);
  by::tangents_forward(queue, convs, pass, c.params, c.vectors);
  const int lowest = to.lowest(c.shape);
  const bool back = lowest < c.shape.blocks, curved = !c.gauss_newton;
  const by::Output<R> what{nullptr, by::of_targets(c.shape, n, c.grads.dy), true, c.dloss, c.grads.dweights};
  by::head(queue, convs, pass, c.params, {true, true, what, back && curved, back && curved}, &c.vectors);
  if (!curved) {
    pass.dlogits = convs.rdlogits;
    if (back) by::head(queue, convs, pass, c.params, {false, false, {}, true});
  }
  by::backward(queue, convs, pass, c.params, lowest);
  if (curved) by::tangents_backward(queue, convs, pass, c.params, c.vectors, lowest);
  by::gradients(queue, convs, pass, c.params, to, c.gauss_newton ? nullptr : &c.vectors);
}

template <class R>
int64_t examples_of(const ConvCurvature<R>& c) {
  return c.examples.count;
}

}  // namespace

FASTMETA_DEFINE_CONV(conv_hvp, ConvCurvature, run)

}  // namespace fastmeta::cuda
