// conv_loss and conv_grad: forward, the loss, and back as far as the gradients that are asked for reach; see conv_layers.h.
#include "inner/cuda/conv_launch.h"

namespace fastmeta::cuda {
namespace {

template <class R>
void run(const ConvLoss<R>& c, Queue& queue) {
  namespace by = layerwise;
  const int64_t n = c.examples.count;
  const bool gradient = c.dparams.any() || c.grads.dx || c.grads.dy;
  auto to = by::asked(c.shape, n, c.dparams, c.grads.dx);
  const auto convs = by::lay_out<R>(queue, c.shape, n, gradient);
  auto pass = by::only_pass<R>(queue, c.shape, n, gradient);
  pass.load(c.examples);
  by::forward(queue, convs, pass, c.params);
  const int lowest = to.lowest(c.shape);
  const bool back = gradient && lowest < c.shape.blocks;
  by::head(queue, convs, pass, c.params,
           {true, true, {nullptr, by::of_targets(c.shape, n, c.grads.dy), false, nullptr, c.grads.dweights}, back});
  if (back) by::backward(queue, convs, pass, c.params, lowest);
  to.loss = {c.loss, 1};
  by::gradients(queue, convs, pass, c.params, to);
}

template <class R>
int64_t examples_of(const ConvLoss<R>& c) {
  return c.examples.count;
}

}  // namespace

FASTMETA_DEFINE_CONV(conv_loss, ConvLoss, run)

}  // namespace fastmeta::cuda
