// What follows a convolution: norm, relu and max-pool in one pass, and their derivatives.
//
// With t = z - mean and s = 1 / sqrt(var + eps), the norm is y = scale t + shift, scale = gamma s (none: t = z, y = t). A window's
// winner is its first largest y, which relu lets through where it is positive: what is not the winner's gets nothing. So
//   dz = s (gamma dy - mean(gamma dy) - s^2 t mean(gamma dy t))
// and everything else is such a sum too, of z, dy and their tangents (norm_relu_pool_tangents.h), with factors for each channel. Means are
// over a set: the batch, one channel (batch norm), or one image, a group of channels (group norm). Images have their channels last.
#pragma once
#include "inner/conv.h"
#include "inner/cpu/matmul.h"
#include "runtime/cpu/scratch.h"

namespace fastmeta::FASTMETA_ISA {

// Of a set, for each channel; the sums are of the gradients that reach a y.
template <class R>
struct Norm {
  Norm(int64_t channels_, Scratch& scratch) : channels(channels_) {
    for (R** each : {&mean, &s, &scale, &shift, &square, &dsum, &dproduct, &of_t, &rest}) *each = scratch.take<R>(channels);
  }
  int64_t channels;
  R *mean, *s, *scale, *shift;
  R* square;           // sum of squares around the channel's mean
  R *dsum, *dproduct;  // sums of dy; of dy t
  R *of_t, *rest;      // dz = scale dy + of_t t + rest
};

// One image of a block's outputs, and where its numbers lie.
struct ImageShape {
  int64_t height, width, channels;  // of z
  int64_t pool;
  bool relu, norm;
  int64_t out_row;   // from one row of the resulting image to the next
  double slope = 0;  // of relu on what is negative

  int64_t out_height() const { return height / pool; }
  int64_t out_width() const { return width / pool; }
};

// Adds an image to each channel's mean and sum of squares around it, of `before` images of the set.
template <class R>
void add_statistics(const ImageShape& e, const R* z, int64_t before, const Norm<R>& norm);
// mean, s, scale, shift of a set of `count` pixels. gamma, beta here and below: null where the norm has none. `lost`: the bias before
// a batch norm, which takes it away, so that its gradient is 0; null: none. Where one of the two is no number, the other is none.
template <class R>
void finish_statistics(const ConvBlock& block, int64_t count, const R* gamma, const R* beta, const R* lost, const Norm<R>& norm);

// top: the winners' t, dense.
template <class R>
void forward_image(const ImageShape& e, const R* z, const Norm<R>& norm, R* out, R* top);
// dsum, dproduct += an image's. d: gradients to the resulting image.
template <class R>
void add_gradients(const ImageShape& e, const R* top, const R* d, const Norm<R>& norm);
// The factors of gradient_image; dgamma, dbeta, dlost += the set's where not null.
template <class R>
void finish_gradients(const ConvBlock& block, int64_t count, const R* gamma, const Norm<R>& norm, R* dgamma, R* dbeta, R* dlost);
// dz, dense, and db += its sum over the image where db is not null.
template <class R>
void gradient_image(const ImageShape& e, const R* z, const R* d, const Norm<R>& norm, R* dz, R* db);

}  // namespace fastmeta::FASTMETA_ISA
