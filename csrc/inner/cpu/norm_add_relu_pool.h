// As norm_relu_pool.h, of the sum of two images, each with its norm: y = (scale t + shift) + (scale' t' + shift'). What follows of one
// of them asks for the other only to know what wins and what relu lets through; the gradient that reaches y is that of both.
#pragma once
#include "inner/cpu/norm_relu_pool.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
struct Summand {
  const R* z;
  const Norm<R>& norm;
  R* top;  // the winners' t, dense
};

template <class R>
void forward_sum(const ImageShape& e, const Summand<R>& a, const Summand<R>& b, R* out);
// dsum, dproduct of a's norm += an image's.
template <class R>
void add_sum_gradients(const ImageShape& e, const Summand<R>& a, const Summand<R>& b, const R* d, const Norm<R>& sums);
// The gradient to a's z, and db += its sum over the image where db is not null.
template <class R>
void sum_gradient(const ImageShape& e, const Summand<R>& a, const Summand<R>& b, const R* d, R* dz, R* db);

}  // namespace fastmeta::FASTMETA_ISA
