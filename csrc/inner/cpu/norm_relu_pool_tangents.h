// The tangents of what norm_relu_pool.h computes: derivatives along a direction of z, dy, gamma and beta.
#pragma once
#include "inner/cpu/norm_relu_pool.h"

namespace fastmeta::FASTMETA_ISA {

// The factors of tangents, for each channel. With rt = rz - mean - along t, what the norm leaves of rz (none: rt = rz):
//   ry = gain t + scale rt + shift;  rdz = of_d dy + scale rdy + of_rt rt + of_t t + rest
template <class R>
struct Tangents {
  Tangents(int64_t channels, Scratch& scratch) {
    for (R** each : {&sum, &product, &rsum, &rproduct, &mean, &along, &gain, &shift, &of_d, &of_rt, &of_t, &rest})
      *each = scratch.take<R>(channels);
  }
  R *sum, *product;    // over the set, of rz; of t rz
  R *rsum, *rproduct;  // of rdy; of rdy t + dy rt
  R *mean, *along, *gain, *shift, *of_d, *of_rt, *of_t, *rest;
};

// From tangents of z into those of the resulting image; and of d, given them, into those of dz.
template <class R>
void add_tangents(const ImageShape& e, const R* z, const R* rz, const Norm<R>& norm, const Tangents<R>& r);
template <class R>
void finish_tangents(const ConvBlock& block, int64_t count, const R* rgamma, const R* rbeta, const R* rlost, const Norm<R>& norm,
                     const Tangents<R>& r);
template <class R>
void forward_tangents(const ImageShape& e, const R* z, const R* rz, const Norm<R>& norm, const Tangents<R>& r, R* out);
template <class R>
void add_gradient_tangents(const ImageShape& e, const R* z, const R* rz, const R* d, const R* rd, const Norm<R>& norm,
                           const Tangents<R>& r);
// The factors of gradient_tangents; rdgamma, rdbeta, rdlost += the tangents of dgamma, dbeta, dlost, where not null.
template <class R>
void finish_gradient_tangents(const ConvBlock& block, int64_t count, const R* gamma, const R* rgamma, const Norm<R>& norm,
                              const Tangents<R>& r, R* rdgamma, R* rdbeta, R* rdlost);
template <class R>
void gradient_tangents(const ImageShape& e, const R* z, const R* rz, const R* d, const R* rd, const Norm<R>& norm, const Tangents<R>& r,
                       R* rdz, R* rdb);

}  // namespace fastmeta::FASTMETA_ISA
