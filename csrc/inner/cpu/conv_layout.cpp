// See conv_layout.h.
#include "inner/cpu/conv_layout.h"

#include "runtime/cpu/transpose.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
ConvLayout<R>::ConvLayout(const ConvNet& net_, const ConvParams<const R>& params, bool images) : net(net_) {
  for (int64_t stride : params.stride) shared = shared && !stride;
  const auto take = [](int64_t& end, int64_t count) {
    end += count;
    return end - count;
  };
  for (int l = 0; l < net.blocks; l++) {
    Block& b = block[l];
    const int64_t source = l - net.block[l].skip;
    b.in = net.block[l].skip ? block[source].in : l ? block[l - 1].out : net.block[0].in;
    b.out = padded<R>(net.block[l].out);
    for (int i = 0; i < 4; i++) b.begin[i] = params.value[4 * l + i] ? take(gradient, i == kWeight ? 3 * b.taps() * b.out : b.out) : -1;
  }
  const ConvBlock& last = net.block[net.blocks - 1];
  features = last.out_height() * last.out_width() * block[net.blocks - 1].out;
  outputs = padded<R>(net.outputs);
  weight = take(gradient, net.outputs * features);
  bias = params.value[4 * net.blocks + 1] ? take(gradient, outputs) : -1;
  size = gradient;
  for (int l = 0; l < net.blocks; l++)
    block[l].flipped = block[l].begin[kWeight] >= 0 && (l || images) ? take(size, 9 * block[l].out * block[l].flipped_in()) : -1;
}

namespace {

// Calls f(place in the tensor, place in the block) for each number of a convolution's W and of the linear layer's.
template <class R, class F>
void for_each_weight(const ConvLayout<R>& layout, int l, F&& f) {
  const ConvBlock& b = layout.net.block[l];
  const auto& a = layout.block[l];
  for (int64_t o = 0; o < b.out; o++)
    for (int64_t i = 0; i < b.in; i++)
      for (int64_t tap = 0; tap < 9; tap++) f((o * b.in + i) * 9 + tap, a.begin[kWeight] + (tap * a.in + i) * a.out + o);
}
template <class R, class F>
void for_each_linear_weight(const ConvLayout<R>& layout, F&& f) {
  const ConvNet& net = layout.net;
  const ConvBlock& b = net.block[net.blocks - 1];
  const int64_t pixels = b.out_height() * b.out_width(), channels = layout.block[net.blocks - 1].out;
  for (int64_t o = 0; o < net.outputs; o++)
    for (int64_t c = 0; c < b.out; c++)
      for (int64_t p = 0; p < pixels; p++) f((o * b.out + c) * pixels + p, layout.weight + o * layout.features + p * channels + c);
}

}  // namespace

template <class R>
void flip(const ConvLayout<R>& layout, R* block) {
  for (int l = 0; l < layout.net.blocks; l++) {
    const auto& a = layout.block[l];
    const int64_t in = a.flipped_in();
    for (int64_t tap = 0; a.flipped >= 0 && tap < 9; tap++)
      transpose(a.in, a.out, block + a.begin[kWeight] + tap * a.in * a.out, a.out, block + a.flipped + (8 - tap) * in * a.out, in);
  }
}

template <class R>
void load_block(const ConvLayout<R>& layout, const ConvParams<const R>& from, int64_t task, R* block) {
  const ConvNet& net = layout.net;
  std::memset(block, 0, size_t(layout.size) * sizeof(R));
  layout.for_each_tensor([&](int tensor, int64_t begin, int64_t, int64_t width) {
    const R* values = from.value[tensor] + task * from.stride[tensor];
    const auto put = [&](int64_t of_tensor, int64_t of_block) { block[of_block] = values[of_tensor]; };
    if (tensor == 4 * net.blocks) for_each_linear_weight(layout, put);
    else if (tensor < 4 * net.blocks && tensor % 4 == kWeight) for_each_weight(layout, tensor / 4, put);
    else std::memcpy(block + begin, values, size_t(width) * sizeof(R));
  });
  flip(layout, block);
}

template <class R>
void store_block(const ConvLayout<R>& layout, const R* block, const ConvParams<R>& to, int64_t task) {
  const ConvNet& net = layout.net;
  layout.for_each_tensor([&](int tensor, int64_t begin, int64_t, int64_t width) {
    if (!to.value[tensor]) return;
    R* values = to.value[tensor] + task * tensor_size(net, tensor);
    const auto put = [&](int64_t of_tensor, int64_t of_block) { values[of_tensor] = block[of_block]; };
    if (tensor == 4 * net.blocks) for_each_linear_weight(layout, put);
    else if (tensor < 4 * net.blocks && tensor % 4 == kWeight) for_each_weight(layout, tensor / 4, put);
    else std::memcpy(values, block + begin, size_t(width) * sizeof(R));
  });
}

#define INSTANTIATE(R)                                                                         \
  template struct ConvLayout<R>;                                                               \
  template void load_block<R>(const ConvLayout<R>&, const ConvParams<const R>&, int64_t, R*);  \
  template void store_block<R>(const ConvLayout<R>&, const R*, const ConvParams<R>&, int64_t); \
  template void flip<R>(const ConvLayout<R>&, R*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
