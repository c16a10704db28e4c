// conv_forward with a linear layer: two launches for each block and one for the outputs; see conv_layers.h.
#include "inner/cuda/conv_launch.h"

namespace fastmeta::cuda {
namespace {

template <bool kGradients, class R>
void run(const ConvForward<R>& c, Queue& queue) {
  namespace by = layerwise;
  by::ConvTargets<R> to;
  if (kGradients) to = by::asked(c.shape, c.count, c.dparams, c.dx);
  const auto convs = by::lay_out<R>(queue, c.shape, c.count, kGradients);
  auto pass = by::only_pass<R>(queue, c.shape, c.count, kGradients);
  pass.load({c.count, c.x});
  if (!kGradients) pass.logits = c.out;
  by::forward(queue, convs, pass, c.params);
  if (!kGradients) return by::head(queue, convs, pass, c.params, {true, false});
  pass.dlogits = const_cast<R*>(c.dout);  // only read
  const int lowest = to.lowest(c.shape);
  if (lowest < c.shape.blocks) by::head(queue, convs, pass, c.params, {false, false, {}, true});
  by::backward(queue, convs, pass, c.params, lowest);
  by::gradients(queue, convs, pass, c.params, to);
}

template <class R>
int64_t examples_of(const ConvForward<R>& c) {
  return c.count;
}

}  // namespace

FASTMETA_DEFINE_CONV(conv_forward_fwd, ConvForward, run<false>)
FASTMETA_DEFINE_CONV(conv_forward_bwd, ConvForward, run<true>)

}  // namespace fastmeta::cuda
