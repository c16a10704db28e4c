// Where the images of a block of convolutions lie, one after the other.
#pragma once
#include "inner/cpu/conv_layout.h"
#include "inner/cpu/convolve.h"
#include "inner/cpu/norm_relu_pool.h"

namespace fastmeta::FASTMETA_ISA {

// x with its zeros around, what the block hands on with those of the next one; z, gradients to it, and the gradient d to what it hands on,
// dense.
template <class R>
struct BlockShape {
  BlockShape(const ConvLayout<R>& layout, int l);

  void load(const ConvBlock& block, const R* image, R* to) const;  // [in, height, width] -> x; its zeros are there

  int64_t pixels;  // of z
  int64_t x_row, x_size, z_size, out_row, out_size, dense_size;
  int64_t x_first, out_first;  // the first number that is no zero
  ConvShape forward;
  ConvBack back;
  ImageShape image;
};

}  // namespace fastmeta::FASTMETA_ISA
