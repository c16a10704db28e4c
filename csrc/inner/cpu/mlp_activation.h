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

// Of the standard normal distribution beyond a >= 0: Q(a) = exp(-a^2 / 2) p(t) / (1 + a), t = (a - kAt) / (a + kAt), p the polynomial
// through (1 + a) Q(a) exp(a^2 / 2) at the Chebyshev points of a in [0, kMost], where float's Q is 0 beyond.
template <class R>
struct NormalTail;
template <>
struct NormalTail<float> {
  static constexpr float kAt = 2.5f, kMost = 14;
  static constexpr float p[] = {0.494659662f,    -0.0915871859f, -0.0377169736f, 0.0460560247f,    -0.00869801268f,
                                -0.00600268459f, 0.00129100704f, 0.00115215231f, -4.94309206e-05f, -0.000132073488f};
};
template <>
struct NormalTail<double> {
  static constexpr double kAt = 5, kMost = 39;
  static constexpr double p[] = {0.46151582985003775,     -0.091552281834008806,  0.031030368425963229,    0.01000235238520508,
                                 -0.026401042966294957,   0.024536963244459763,   -0.015170415402485999,   0.0065220006562448458,
                                 -0.0016760723488506491,  7.7916912001437573e-06, 0.00018233420251531396,  -5.3608038145015818e-05,
                                 -9.8964688962813402e-06, 9.0612057953971218e-06, -6.8956834512062499e-08, -1.3100089700228854e-06,
                                 1.2471420099248941e-07,  1.9896232929933335e-07, -2.1958115388923179e-08, -3.208575497095596e-08,
                                 3.5281572897395848e-10,  4.0376458134958437e-09, 7.7194626715840137e-10};
};

// Neither tail cancels.
template <class R>
inline void gelu(R* __restrict x, R* __restrict slope, R* __restrict slope2, int64_t count) {
  using F = NormalTail<R>;
  constexpr int terms = sizeof F::p / sizeof(R);
#pragma omp simd
  for (int64_t i = 0; i < count; i++) {
    const R z = x[i], e = exp_approx(R(-0.5) * z * z), magnitude = z < 0 ? -z : z;
    const R a = magnitude < F::kMost ? magnitude : F::kMost;
    const R inverse = 1 / ((a + F::kAt) * (1 + a)), t = (a - F::kAt) * (1 + a) * inverse;
    R p = F::p[terms - 1];
#pragma GCC unroll 24
    for (int k = terms - 2; k >= 0; k--) p = p * t + F::p[k];
    const R tail = e * p * ((a + F::kAt) * inverse), below = z < 0 ? tail : 1 - tail;
    const R density = e * R(0.39894228040143267794);
    x[i] = z * below;
    if (slope) slope[i] = below + z * density;
    if (slope2) slope2[i] = density * (2 - z * z);
  }
}

// x: z -> activation(z); its slope and second derivative, each where it is not null. Sloped kinds only.
template <class R>
inline void activate(Activation kind, R* __restrict x, R* __restrict slope, R* __restrict slope2, int64_t count) {
  if (kind == Activation::gelu) return gelu(x, slope, slope2, count);
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
