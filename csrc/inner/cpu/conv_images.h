// Where the images of a block of convolutions lie, and the way back through its convolution. Pixel x of a row meets tap i of the kernel
// where x + padding - i = stride z: so pixels of one remainder by the stride, a phase, meet the same taps, one z after the other. The
// gradient to the pixels of one phase is a convolution of dz by these taps turned around, and no product has a zero of a stride in it.
#pragma once
#include <cstring>
#include <vector>

#include "inner/cpu/conv_layout.h"
#include "inner/cpu/convolve.h"
#include "inner/cpu/norm_relu_pool.h"

namespace fastmeta::FASTMETA_ISA {

// A convolution that takes gradients to z to those of x, to every pixel or to the rows and columns of one phase; and the first numbers of
// dz, of the kernels turned around and of x.
struct BackToX {
  ConvShape shape;
  int64_t dz, w, x;
};

// A block's images in memory: x with its zeros around, z, the gradient d to what it hands on, dense; and gradients to z, in as many zeros
// as the convolutions that take them to x need.
template <class R>
struct BlockShape {
  // `dense`: gradients to z have no zeros around.
  BlockShape(const ConvLayout<R>& layout, int l, bool dense = false);

  void load(const ConvBlock& block, const R* image, R* to) const;  // [in, height, width] -> x; its zeros are there

  int64_t pixels;  // of z
  int64_t x_row, x_size, z_size, out_row, out_size, dense_size, dz_size;
  int64_t x_first, dz_first, out_first;  // the first number that is no zero
  ConvShape forward;
  ImageShape image;
  std::vector<BackToX> to_x;  // dense

  // The gradient to x of an image, from dz with its zeros and kernels turned around.
  template <int count>
  void convolve_back(const ConvSource<R> (&sources)[count], R* dx) const {
    if (misses) std::memset(dx, 0, size_t(dx_size) * sizeof(R));
    for (const BackToX& back : to_x) {
      ConvSource<R> of_phase[count];
      for (int i = 0; i < count; i++) of_phase[i] = {sources[i].x + back.dz, sources[i].w + back.w};
      convolve<R>(back.shape, of_phase, nullptr, dx + back.x);
    }
  }

 private:
  void go_back(const ConvLayout<R>& layout, int l);

  bool misses = false;  // whether some pixels of x meet no tap
  int64_t dx_size = 0;
};

}  // namespace fastmeta::FASTMETA_ISA
