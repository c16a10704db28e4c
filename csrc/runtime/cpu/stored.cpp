// float16 has 5 bits of exponent, biased by 15, and 10 of mantissa; bfloat16 is the upper half of a float. No float that is subnormal takes
// part, which a processor that flushes these to zero would lose.
#include "runtime/cpu/stored.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

constexpr uint32_t kRebias = (127 - 15) << 23, kInfinity = 0x7f800000, kQuiet = 0x400000;

FASTMETA_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
FASTMETA_INLINE float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

FASTMETA_INLINE float of_float16(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = uint32_t(half & 0x7fff) << 13;
  const uint32_t normal = rest + kRebias, special = rest + 2 * kRebias;     // infinite, or NaN
  const uint32_t small = bits_of(float(int32_t(half & 0x3ff)) * 0x1p-24f);  // subnormal as float16
  const uint32_t found = rest < 1u << 23 ? small : rest < 31u << 23 ? normal : special;
  return float_of(found | sign);
}

FASTMETA_INLINE uint16_t to_float16(float x) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  const uint32_t normal = (rest - kRebias + 0xfff + (rest >> 13 & 1)) >> 13;  // a carry may lead to the next exponent, or infinity
  const uint32_t small = bits_of(float_of(rest) + 0.5f) - bits_of(0.5f);      // the units of 0.5 are those of subnormal float16
  const uint32_t large = rest > kInfinity ? 0x7e00 : 0x7c00;
  const uint32_t found = rest < (127u - 14) << 23 ? small : rest < (127u + 16) << 23 ? normal : large;
  return uint16_t(found | sign);
}

FASTMETA_INLINE uint16_t to_bfloat16(float x) {
  const uint32_t bits = bits_of(x), rounded = bits + 0x7fff + (bits >> 16 & 1);
  return uint16_t(((bits & 0x7fffffff) > kInfinity ? bits | kQuiet : rounded) >> 16);
}

}  // namespace

void widen(Storage as, const uint16_t* from, int64_t count, float* to) {
  if (as == Storage::float16)
#pragma omp simd
    for (int64_t i = 0; i < count; i++) to[i] = of_float16(from[i]);
  else
#pragma omp simd
    for (int64_t i = 0; i < count; i++) to[i] = float_of(uint32_t(from[i]) << 16);
}

void narrow(Storage as, const float* from, int64_t count, uint16_t* to) {
  if (as == Storage::float16)
#pragma omp simd
    for (int64_t i = 0; i < count; i++) to[i] = to_float16(from[i]);
  else
#pragma omp simd
    for (int64_t i = 0; i < count; i++) to[i] = to_bfloat16(from[i]);
}

}  // namespace fastmeta::FASTMETA_ISA
