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
    b.out = padded<R>(net.block[l].out), b.kernel = net.block[l].kernel;
    for (int i = 0; i < 4; i++)
      b.begin[i] = params.value[4 * l + i] ? take(gradient, i == kWeight ? b.kernel * b.taps() * b.out : b.out) : -1;
  }
  last = net.all_pixels() * block[net.blocks - 1].out, features = last / net.pixels();
  outputs = padded<R>(net.outputs);
  weight = take(gradient, net.outputs * features);
  bias = params.value[4 * net.blocks + 1] ? take(gradient, outputs) : -1;
  size = gradient;
  for (int l = 0; l < net.blocks; l++) {
    const int64_t taps = block[l].kernel * block[l].kernel;
    block[l].flipped = block[l].begin[kWeight] >= 0 && (l || images) ? take(size, taps * block[l].out * block[l].flipped_in()) : -1;
  }
}

namespace {

constexpr int64_t kTogether = 16;  // columns of a convolution's W as a matrix [out, in * taps]

// Calls f(o, c, rows, columns) for the parts of W from row o and column c on.
template <class R, class F>
void for_each_part_of_weight(const ConvLayout<R>& layout, int l, F&& f) {
  const ConvBlock& b = layout.net.block[l];
  const int64_t width = b.in * b.kernel * b.kernel;
  for (int64_t c = 0; c < width; c += kTogether)
    for (int64_t o = 0; o < b.out; o += kLanes<R>) f(o, c, least(kLanes<R>, b.out - o), least(kTogether, width - c));
}
// Where column c of W lies in the block, from W's first number on.
template <class R>
int64_t row_of(const ConvLayout<R>& layout, int l, int64_t c) {
  const auto& a = layout.block[l];
  const int64_t taps = a.kernel * a.kernel;
  return (c % taps * a.in + c / taps) * a.out;
}
template <class R>
void load_weight(const ConvLayout<R>& layout, int l, const R* values, R* to) {
  const ConvBlock& b = layout.net.block[l];
  const int64_t width = b.in * b.kernel * b.kernel;
  for_each_part_of_weight(layout, l, [&](int64_t o, int64_t c, int64_t rows, int64_t columns) {
    alignas(64) R part[kTogether * kLanes<R>];
    transpose(rows, columns, values + o * width + c, width, part, kLanes<R>);
    for (int64_t j = 0; j < columns; j++) store(to + row_of(layout, l, c + j) + o, load(part + j * kLanes<R>));
  });
}
template <class R>
void store_weight(const ConvLayout<R>& layout, int l, const R* from, R* values) {
  const ConvBlock& b = layout.net.block[l];
  const int64_t width = b.in * b.kernel * b.kernel;
  for_each_part_of_weight(layout, l, [&](int64_t o, int64_t c, int64_t rows, int64_t columns) {
    alignas(64) R part[kTogether * kLanes<R>], turned[kTogether * kLanes<R>];
    for (int64_t j = 0; j < columns; j++) store(part + j * kLanes<R>, load(from + row_of(layout, l, c + j) + o));
    transpose(columns, kLanes<R>, part, kLanes<R>, turned, kTogether);
    for (int64_t row = 0; row < rows; row++)
      std::memcpy(values + (o + row) * width + c, turned + row * kTogether, size_t(columns) * sizeof(R));
  });
}
// Calls f(place in the tensor, place in the block) for each number of the linear layer's W.
template <class R, class F>
void for_each_linear_weight(const ConvLayout<R>& layout, F&& f) {
  const ConvNet& net = layout.net;
  const ConvBlock& b = net.block[net.blocks - 1];
  const int64_t pixels = net.all_pixels() / net.pixels(), channels = layout.block[net.blocks - 1].out;
  for (int64_t o = 0; o < net.outputs; o++)
    for (int64_t c = 0; c < b.out; c++)
      for (int64_t p = 0; p < pixels; p++) f((o * b.out + c) * pixels + p, layout.weight + o * layout.features + p * channels + c);
}

}  // namespace

template <class R>
void flip(const ConvLayout<R>& layout, R* block) {
  for (int l = 0; l < layout.net.blocks; l++) {
    const auto& a = layout.block[l];
    const int64_t in = a.flipped_in(), taps = a.kernel * a.kernel;
    for (int64_t tap = 0; a.flipped >= 0 && tap < taps; tap++)
      transpose(a.in, a.out, block + a.begin[kWeight] + tap * a.in * a.out, a.out, block + a.flipped + tap * in * a.out, in);
  }
}

template <class R>
void load_block(const ConvLayout<R>& layout, const ConvParams<const R>& from, int64_t task, R* block) {
  const ConvNet& net = layout.net;
  clear(layout, block, [&](int l) { return layout.block[l].in == net.block[l].in && layout.block[l].out == net.block[l].out; });
  std::memset(block + layout.gradient, 0, size_t(layout.size - layout.gradient) * sizeof(R));
  layout.for_each_tensor([&](int tensor, int64_t begin, int64_t, int64_t width) {
    const R* values = from.value[tensor] + task * from.stride[tensor];
    const auto put = [&](int64_t of_tensor, int64_t of_block) { block[of_block] = values[of_tensor]; };
    if (tensor == 4 * net.blocks) for_each_linear_weight(layout, put);
    else if (tensor < 4 * net.blocks && tensor % 4 == kWeight) load_weight(layout, tensor / 4, values, block + begin);
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
    else if (tensor < 4 * net.blocks && tensor % 4 == kWeight) store_weight(layout, tensor / 4, block + begin, values);
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
