// conv_loss and conv_grad: forward, the loss, and back as far as the gradients that are asked for reach; see conv_layers.h.
#include "inner/cuda/conv_launch.h"

namespace fastmeta::cuda {
namespace {

template <class R>
void run(const ConvLoss<R>& c, Queue& queue) {
  namespace by = layerwise;
  const int64_t n = c.examples.count;
  const bool gradient = c.dparams.any() || c.grads.dx || c.grads.dy;
  const auto to = by::asked(c.shape, n, c.dparams, c.grads.dx);
  const auto convs = by::lay_out<R>(queue, c.shape, n, gradient);
  auto pass = by::only_pass(queue, c.shape, c.params, n, gradient);
  pass.load(c.examples);
  by::forward(queue, convs, pass, c.params);
  by::output(queue, pass.head, {c.loss, by::of_targets(pass.head, c.grads.dy), false, nullptr, c.grads.dweights});
  if (!gradient) return;
  by::backward(queue, convs, pass, c.params, to.lowest(c.shape));
  by::gradients(queue, convs, pass, c.params, to);
}

template <class R>
int64_t examples_of(const ConvLoss<R>& c) {
  return c.examples.count;
}

}  // namespace

FASTMETA_DEFINE_CONV(conv_loss, ConvLoss, run)

}  // namespace fastmeta::cuda
