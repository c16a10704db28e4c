// See conv_images.h.
#include "inner/cpu/conv_images.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

// Along one side of x the pixels of a phase: how many, the first, and the z that the kernel's first tap of that phase takes there.
struct Phase {
  int64_t count, x, z;
  Phase(const ConvBlock& b, int64_t size, int64_t phase) : z(most(0, b.padding - phase + b.stride - 1) / b.stride) {
    x = b.stride * z + phase - b.padding;
    count = x < size ? (size - 1 - x) / b.stride + 1 : 0;
  }
};

}  // namespace

template <class R>
BlockShape<R>::BlockShape(const ConvLayout<R>& layout, int l, bool dense) {
  const ConvBlock& b = layout.net.block[l];
  const int64_t around = layout.net.block[l - b.skip].padding;  // of whose input it is
  const int64_t in = layout.block[l].in, out = layout.block[l].out;
  const int64_t H = b.conv_height(), W = b.conv_width();
  // The next block's zeros, so that this one writes right into its padded input.
  const int64_t next = l + 1 < layout.net.blocks ? layout.net.block[l + 1].padding : 0;
  const int64_t width = b.width + 2 * around;
  const int64_t out_height = b.out_height(), out_width = b.out_width();
  pixels = H * W;
  x_row = width * in, x_size = (b.height + 2 * around) * x_row, x_first = around * (x_row + in);
  z_size = pixels * out, dense_size = out_height * out_width * out;
  out_row = (out_width + 2 * next) * out, out_size = (out_height + 2 * next) * out_row, out_first = next * (out_row + out);
  forward = {H, W, out, b.stride * x_row, b.stride * in, x_row, b.kernel * in, b.kernel, W * out, out};
  image = {H, W, out, b.pool, b.relu, b.norm != ConvNorm::none, out_row, W * out, out, b.slope};
  dz_size = z_size, dz_first = 0;
  if (!dense) go_back(layout, l);
}

template <class R>
void BlockShape<R>::go_back(const ConvLayout<R>& layout, int l) {
  const ConvBlock& b = layout.net.block[l];
  const auto& a = layout.block[l];
  const int64_t in = a.flipped_in(), out = a.out, phases = least(b.stride, b.kernel);
  int64_t before = 0, height = b.conv_height(), width = b.conv_width();  // zeros before dz; its rows and columns with those behind
  for (int64_t p = 0; p < phases; p++) {
    const Phase rows(b, b.height, p), columns(b, b.width, p);
    before = most(before, a.of_phase(p) - 1 - rows.z);
    height = most(height, rows.z + rows.count), width = most(width, columns.z + columns.count);
  }
  width += before;
  dz_size = (before + height) * width * out, dz_first = before * (width + 1) * out;
  image.dz_row = width * out;
  misses = b.stride > b.kernel, dx_size = b.height * b.width * in;
  for (int64_t i = 0; i < phases; i++)
    for (int64_t j = 0; j < phases; j++) {
      const Phase rows(b, b.height, i), columns(b, b.width, j);
      const int64_t tall = a.of_phase(i), wide = a.of_phase(j);
      to_x.push_back(
          {{rows.count, columns.count, in, width * out, out, width * out, wide * out, tall, b.stride * b.width * in, b.stride * in},
           ((before + rows.z - tall + 1) * width + before + columns.z - wide + 1) * out,
           a.first_tap(i, j) * out * in,
           (rows.x * b.width + columns.x) * in});
    }
}

template <class R>
void BlockShape<R>::load(const ConvBlock& b, const R* image, R* to) const {
  for (int64_t channel = 0; channel < b.in; channel++)
    for (int64_t row = 0; row < b.height; row++) {
      R* line = to + x_first + row * x_row + channel;
      for (int64_t column = 0; column < b.width; column++) line[column * b.in] = *image++;
    }
}

template struct BlockShape<float>;
template struct BlockShape<double>;

}  // namespace fastmeta::FASTMETA_ISA
