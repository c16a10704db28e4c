// The activations of hidden layers with their first and second derivatives. ReLU needs neither: its slope is x > 0.
#pragma once
#include <cmath>

#include "inner/mlp.h"
#include "runtime/cpu/simd.h"

namespace fastmeta::FASTMETA_ISA {

inline bool is_sloped(Activation kind) { return kind != Activation::relu && kind != Activation::identity; }

// tanh: near 0 a rational function of Cephes, else by e^{-2|x|}
template <class R>
FASTMETA_INLINE R tanh_approx(R x) {
  const R magnitude = x < 0 ? -x : x, z = x * x;
  const R p = (R(-9.64399179425052238628e-1) * z - R(9.92877231001918586564e1)) * z - R(1.61468768441708447952e3);
  const R q = ((z + R(1.12811678491632931402e2)) * z + R(2.23548839060100448583e3)) * z + R(4.84406305325125486048e3);
  const R small = x + x * z * (p / q);
  const R decay = exp_approx(R(-2) * magnitude);
  const R large = (1 - decay) / (1 + decay);
  return magnitude < R(0.625) ? small : (x < 0 ? -large : large);
}

// sin and cos of each; far ones, which sine_cosine does not take, by libm.
template <class R>
inline void sines(R* __restrict x, R* __restrict slope, int64_t count) {
  constexpr R most = FloatTraits<R>::kSineMax;
  int far = 0;
#pragma omp simd reduction(| : far)
  for (int64_t i = 0; i < count; i++) {
    const R z = x[i];
    R sine, cosine;
    sine_cosine(z, sine, cosine);
    const bool near = z <= most && z >= -most;
    far |= !near;
    x[i] = near ? sine : z;
    if (slope) slope[i] = cosine;
  }
  for (int64_t i = 0; far && i < count; i++) {
    if (x[i] <= most && x[i] >= -most) continue;
    if (slope) slope[i] = std::cos(x[i]);
    x[i] = std::sin(x[i]);
  }
}

// e^-|z| leaves both s = sigmoid(z) and 1 - s without cancellation.
template <class R>
inline void silu(R* __restrict x, R* __restrict slope, R* __restrict slope2, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) {
    const R z = x[i], e = exp_approx(z < 0 ? z : -z), large = 1 / (1 + e), small = e * large;
    const R s = z < 0 ? small : large, rest = z < 0 ? large : small;
    x[i] = z * s;
    if (slope) slope[i] = s * (1 + z * rest);
    if (slope2) slope2[i] = s * rest * (2 + z * (rest - s));
  }
}

// x: z -> activation(z); its slope and second derivative, each where it is not null. Sloped kinds only.
template <class R>
inline void activate(Activation kind, R* __restrict x, R* __restrict slope, R* __restrict slope2, int64_t count) {
  if (kind == Activation::gelu) {
    for (int64_t i = 0; i < count; i++) {
      const R z = x[i], below = R(0.5) * (1 + std::erf(z * R(0.70710678118654752440)));
      const R density = std::exp(R(-0.5) * z * z) * R(0.39894228040143267794);
      x[i] = z * below;
      if (slope) slope[i] = below + z * density;
      if (slope2) slope2[i] = density * (2 - z * z);
    }
    return;
  }
  if (kind == Activation::silu) return silu(x, slope, slope2, count);
  if (kind == Activation::leaky_relu) {
    for (int64_t i = 0; i < count; i++) {
      const R part = x[i] > 0 ? R(1) : R(kLeak);
      x[i] *= part;
      if (slope) slope[i] = part;
    }
    return;
  }
  if (kind == Activation::sine) {
    sines(x, slope, count);
    for (int64_t i = 0; slope2 && i < count; i++) slope2[i] = -x[i];
    return;
  }
  const bool tanh = kind == Activation::tanh;
  if (tanh)
#pragma omp simd
    for (int64_t i = 0; i < count; i++) x[i] = tanh_approx(x[i]);
  else
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
      const R e = exp_approx(x[i]);  // finite
      x[i] = e / (1 + e);            // 0 and 1 at the infinities
    }
  if (slope)
#pragma omp simd
    for (int64_t i = 0; i < count; i++) slope[i] = tanh ? 1 - x[i] * x[i] : x[i] * (1 - x[i]);
  if (slope2)
#pragma omp simd
    for (int64_t i = 0; i < count; i++) slope2[i] = slope[i] * (tanh ? -2 * x[i] : 1 - 2 * x[i]);
}

}  // namespace fastmeta::FASTMETA_ISA
