// Elementary functions that the compiler vectorises: no branches, no calls, the same code for float and double.
// Compiled once per instruction set, so everything is inline in the set's namespace.
#pragma once
#include <cstdint>
#include <cstring>

#define FASTMETA_INLINE static inline __attribute__((always_inline))

namespace fastmeta::FASTMETA_ISA {

template <class R>
struct FloatTraits;
template <>
struct FloatTraits<float> {
  using Int = int32_t;
  using Bits = uint32_t;
  static constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  static constexpr float kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;
  static constexpr float kExpMin = -87.3f, kExpMax = 88.7f;
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 7, kLogTerms = 5;
  static constexpr Int kHalfRoot = 0x3f3504f3;  // bits of sqrt(1/2)
  // pi / 2 in three parts, the first two so short that up to kSineMax their products with integers are exact
  static constexpr float kHalfPi[] = {1.5703125f, 0.0004837512969970703f, 7.549790126e-08f};
  static constexpr float kSineMax = 12800;
  static constexpr int kSineTerms = 5, kCosineTerms = 6;
};
template <>
struct FloatTraits<double> {
  using Int = int64_t;
  using Bits = uint64_t;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2Hi = 0.693145751953125, kLn2Lo = 1.42860682030941723212e-6;
  static constexpr double kExpMin = -708.3, kExpMax = 709.7;
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 13, kLogTerms = 11;
  static constexpr Int kHalfRoot = 0x3fe6a09e667f3bcd;
  static constexpr double kHalfPi[] = {1.57079632673412561417, 6.07710050630396597660e-11, 2.02226624879595063154e-21};
  static constexpr double kSineMax = 1e5;
  static constexpr int kSineTerms = 9, kCosineTerms = 9;
};

// e^x to 2 ulp for x in [kExpMin, kExpMax]; below it is 0, above it e^kExpMax. NaN stays NaN.
template <class R>
FASTMETA_INLINE R exp_approx(R x) {
  using F = FloatTraits<R>;
  using Int = typename F::Int;
  using Bits = typename F::Bits;  // unsigned: what a NaN shifts is no overflow
  const bool tiny = x < F::kExpMin;
  R y = x < F::kExpMin ? F::kExpMin : x;
  y = y > F::kExpMax ? F::kExpMax : y;
  const R shifted = y * R(1.44269504088896340736) + F::kRound;
  const R n = shifted - F::kRound;
  const R r = (y - n * F::kLn2Hi) - n * F::kLn2Lo;
  constexpr R inverse_factorial[] = {
      R(1),        R(1),         R(1) / 2,      R(1) / 6,       R(1) / 24,       R(1) / 120,       R(1) / 720,
      R(1) / 5040, R(1) / 40320, R(1) / 362880, R(1) / 3628800, R(1) / 39916800, R(1) / 479001600, R(1) / 6227020800.};
  R p = inverse_factorial[F::kTerms];
#pragma GCC unroll 16
  for (int k = F::kTerms - 1; k >= 0; k--) p = p * r + inverse_factorial[k];
  Bits bits, magic;
  const R round = F::kRound;
  std::memcpy(&bits, &shifted, sizeof bits);
  std::memcpy(&magic, &round, sizeof magic);
  // 2^n in two factors, so that n = kBias + 1 does not overflow the exponent.
  const Int half = Int(bits - magic) >> 1;
  const Bits rest = bits - magic - Bits(half);
  const Bits a = (Bits(half) + F::kBias) << F::kMantissa, b = (rest + F::kBias) << F::kMantissa;
  R scale_a, scale_b;
  std::memcpy(&scale_a, &a, sizeof a);
  std::memcpy(&scale_b, &b, sizeof b);
  return tiny ? R(0) : p * scale_a * scale_b;
}

// ln x to 2 ulp, near 1 too, for normal numbers; -inf for 0, infinity and NaN stay: x = 2^n m with m in [sqrt(1/2), sqrt 2),
// ln m = 2 atanh s with s = (m - 1) / (m + 1).
template <class R>
FASTMETA_INLINE R log_approx(R x) {
  using F = FloatTraits<R>;
  using Int = typename F::Int;
  using Bits = typename F::Bits;
  Bits bits;
  std::memcpy(&bits, &x, sizeof bits);
  const Int n = Int(bits - Bits(F::kHalfRoot)) >> F::kMantissa;
  bits -= Bits(n) << F::kMantissa;
  R m;
  std::memcpy(&m, &bits, sizeof m);
  const R s = (m - 1) / (m + 1), z = s * s;
  R p = R(2) / (2 * F::kLogTerms + 1);
#pragma GCC unroll 16
  for (int k = F::kLogTerms - 1; k >= 1; k--) p = p * z + R(2) / (2 * k + 1);
  const R found = R(n) * F::kLn2Hi + (2 * s + (s * z * p + R(n) * F::kLn2Lo));
  const R infinity = R(__builtin_inf());
  return x == 0 ? -infinity : x < infinity ? found : x;
}

// sin x and cos x to 2 ulp, but near their zeros to 1e-10 in float, for |x| <= kSineMax: x = n pi / 2 + r with |r| <= pi / 4.
template <class R>
FASTMETA_INLINE void sine_cosine(R x, R& sine, R& cosine) {
  using F = FloatTraits<R>;
  using Bits = typename F::Bits;
  const R shifted = x * R(0.63661977236758134308) + F::kRound;
  const R n = shifted - F::kRound;
  const R r = ((x - n * F::kHalfPi[0]) - n * F::kHalfPi[1]) - n * F::kHalfPi[2], z = r * r;
  constexpr R inverse_factorial[] = {R(1) / 2,
                                     R(1) / 6,
                                     R(1) / 24,
                                     R(1) / 120,
                                     R(1) / 720,
                                     R(1) / 5040,
                                     R(1) / 40320,
                                     R(1) / 362880,
                                     R(1) / 3628800,
                                     R(1) / 39916800,
                                     R(1) / 479001600,
                                     R(1) / 6227020800.,
                                     R(1) / 87178291200.,
                                     R(1) / 1307674368e3,
                                     R(1) / 20922789888e3,
                                     R(1) / 355687428096e3};
  R s = inverse_factorial[2 * F::kSineTerms - 3], c = inverse_factorial[2 * F::kCosineTerms - 4];  // of r^(2k+1), r^2k, alternating
#pragma GCC unroll 16
  for (int k = F::kSineTerms - 2; k >= 1; k--) s = inverse_factorial[2 * k - 1] - z * s;
#pragma GCC unroll 16
  for (int k = F::kCosineTerms - 2; k >= 1; k--) c = inverse_factorial[2 * k - 2] - z * c;
  s = r - r * z * s;
  c = 1 - z * c;
  Bits quadrant, magic, of_sine, of_cosine;
  const R round = F::kRound;
  std::memcpy(&quadrant, &shifted, sizeof quadrant);
  std::memcpy(&magic, &round, sizeof magic);
  quadrant -= magic;
  const bool odd = quadrant & 1;
  sine = odd ? c : s;
  cosine = odd ? s : c;
  std::memcpy(&of_sine, &sine, sizeof sine);
  std::memcpy(&of_cosine, &cosine, sizeof cosine);
  of_sine ^= (quadrant & 2) << (8 * sizeof(R) - 2);
  of_cosine ^= ((quadrant + 1) & 2) << (8 * sizeof(R) - 2);
  std::memcpy(&sine, &of_sine, sizeof sine);
  std::memcpy(&cosine, &of_cosine, sizeof cosine);
}

}  // namespace fastmeta::FASTMETA_ISA
