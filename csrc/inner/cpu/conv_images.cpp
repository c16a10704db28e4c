// See conv_images.h.
#include "inner/cpu/conv_images.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
BlockShape<R>::BlockShape(const ConvLayout<R>& layout, int l) {
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
  const int64_t runs = b.in == in ? 1 : b.kernel;
  forward = {H, W, out, b.stride * x_row, b.stride * in, x_row, b.kernel * in, b.kernel, runs, b.kernel / runs * b.in, W * out, out};
  back = {H, W, b.out, out, b.kernel, b.stride, b.padding, b.height, b.width, layout.block[l].flipped_in()};
  image = {H, W, out, b.pool, b.relu, b.norm != ConvNorm::none, out_row, b.slope};
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
