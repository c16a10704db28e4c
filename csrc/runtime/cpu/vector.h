// Vectors of the widest registers of the instruction set, in GCC's and Clang's vector extension. Builtins in place of <immintrin.h>,
// which takes the compiler a quarter of a second in each file.
#pragma once
#include <cstdint>
#include <cstring>

#include "runtime/cpu/simd.h"

namespace fastmeta::FASTMETA_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

template <class R, int bytes = kVectorBytes>
struct VectorOf;
template <int bytes>
struct VectorOf<float, bytes> {
  typedef float type __attribute__((vector_size(bytes)));
  typedef float unaligned __attribute__((vector_size(bytes), aligned(4), may_alias));
};
template <int bytes>
struct VectorOf<double, bytes> {
  typedef double type __attribute__((vector_size(bytes)));
  typedef double unaligned __attribute__((vector_size(bytes), aligned(8), may_alias));
};
template <class R>
using Vector = typename VectorOf<R>::type;

template <class R>
constexpr int64_t kLanes = kVectorBytes / int64_t(sizeof(R));

template <class R>
FASTMETA_INLINE Vector<R> load(const R* from) {
  return *reinterpret_cast<const typename VectorOf<R>::unaligned*>(from);
}

template <class R>
FASTMETA_INLINE void store(R* to, Vector<R> x) {
  *reinterpret_cast<typename VectorOf<R>::unaligned*>(to) = x;
}

// Past the caches, for results that outgrow them: no line is read before it is written. `to`: aligned like the vector. Whoever
// has done so ends with stream_fence().
template <class R>
FASTMETA_INLINE void stream(R* to, Vector<R> x) {
#if defined(__clang__)
  __builtin_nontemporal_store(x, reinterpret_cast<Vector<R>*>(to));
#elif defined(__AVX512F__)
  __builtin_ia32_movntps512(reinterpret_cast<float*>(to), Vector<float>(x));
#elif defined(__AVX2__)
  __builtin_ia32_movntps256(reinterpret_cast<float*>(to), Vector<float>(x));
#elif defined(__SSE2__)
  __builtin_ia32_movntps(reinterpret_cast<float*>(to), Vector<float>(x));
#else
  store(to, x);
#endif
}
FASTMETA_INLINE void stream_fence() {
#if defined(__SSE2__)
  __builtin_ia32_sfence();
#endif
}

// Bit i: whether lane i is NaN.
template <class R>
FASTMETA_INLINE uint32_t nan_lanes(Vector<R> x) {
#if defined(__AVX512F__) && !defined(__clang__)
  constexpr int unordered = 3, rounding = 4;  // the latter as it is
  if constexpr (sizeof(R) == 4) return uint32_t(__builtin_ia32_cmpps512_mask(x, x, unordered, -1, rounding));
  else return uint32_t(__builtin_ia32_cmppd512_mask(x, x, unordered, -1, rounding));
#elif defined(__AVX2__) && !defined(__clang__)
  if constexpr (sizeof(R) == 4) return uint32_t(__builtin_ia32_movmskps256(Vector<float>(x != x)));
  else return uint32_t(__builtin_ia32_movmskpd256(Vector<double>(x != x)));
#elif defined(__SSE2__) && !defined(__clang__)
  if constexpr (sizeof(R) == 4) return uint32_t(__builtin_ia32_movmskps(Vector<float>(x != x)));
  else return uint32_t(__builtin_ia32_movmskpd(Vector<double>(x != x)));
#else
  uint32_t found = 0;
  for (int i = 0; i < kLanes<R>; i++) found |= uint32_t(x[i] != x[i]) << i;
  return found;
#endif
}

template <class R>
FASTMETA_INLINE bool any_nan(Vector<R> x) {
#if defined(__clang__)
  return __builtin_reduce_or(x != x) != 0;
#elif defined(__SSE2__)
  return nan_lanes<R>(x) != 0;
#else
  typedef int64_t Halves __attribute__((vector_size(16)));
  const auto unordered = Halves(x != x);
  return (unordered[0] | unordered[1]) != 0;
#endif
}

// A vector's halves added until 16 bytes are left.
template <class R, int bytes = kVectorBytes>
FASTMETA_INLINE typename VectorOf<R, 16>::type fold(typename VectorOf<R, bytes>::type x) {
  if constexpr (bytes > 16) {
    typename VectorOf<R, bytes / 2>::type low, high;
#if defined(__AVX512F__) && !defined(__clang__)
    if constexpr (bytes == 64) {  // memcpy would go through memory
      const auto whole = VectorOf<double, 64>::type(x);
      const VectorOf<double, 32>::type zero = {};
      low = decltype(low)(__builtin_ia32_extractf64x4_mask(whole, 0, zero, 0xf));
      high = decltype(high)(__builtin_ia32_extractf64x4_mask(whole, 1, zero, 0xf));
      return fold<R, bytes / 2>(low + high);
    }
#endif
    std::memcpy(&low, &x, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
    return fold<R, bytes / 2>(low + high);
  } else {
    return x;
  }
}

FASTMETA_INLINE float sum_folded(VectorOf<float, 16>::type x) { return (x[0] + x[2]) + (x[1] + x[3]); }
FASTMETA_INLINE double sum_folded(VectorOf<double, 16>::type x) { return x[0] + x[1]; }

template <class R>
FASTMETA_INLINE R sum_lanes(Vector<R> x) {
  return sum_folded(fold<R>(x));
}

#ifdef __clang__
#define FASTMETA_SHUFFLE(a, b, Index, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FASTMETA_SHUFFLE(a, b, Index, ...) __builtin_shuffle(a, b, Index{__VA_ARGS__})
#endif

// The sums of four (double: two) vectors' lanes, as one vector: the same additions as sum_lanes.
FASTMETA_INLINE VectorOf<float, 16>::type sums_of(const Vector<float>* x) {
  using V = VectorOf<float, 16>::type;
  typedef int32_t Index __attribute__((vector_size(16)));
  const V a = fold<float>(x[0]), b = fold<float>(x[1]), c = fold<float>(x[2]), d = fold<float>(x[3]);
  const V ab = FASTMETA_SHUFFLE(a, b, Index, 0, 4, 1, 5) + FASTMETA_SHUFFLE(a, b, Index, 2, 6, 3, 7);
  const V cd = FASTMETA_SHUFFLE(c, d, Index, 0, 4, 1, 5) + FASTMETA_SHUFFLE(c, d, Index, 2, 6, 3, 7);
  return FASTMETA_SHUFFLE(ab, cd, Index, 0, 1, 4, 5) + FASTMETA_SHUFFLE(ab, cd, Index, 2, 3, 6, 7);
}
FASTMETA_INLINE VectorOf<double, 16>::type sums_of(const Vector<double>* x) {
  using V = VectorOf<double, 16>::type;
  typedef int64_t Index __attribute__((vector_size(16)));
  const V a = fold<double>(x[0]), b = fold<double>(x[1]);
  return FASTMETA_SHUFFLE(a, b, Index, 0, 2) + FASTMETA_SHUFFLE(a, b, Index, 1, 3);
}

// sums[k] = the sum of the lanes of x[k], for K vectors.
template <class R, int K>
FASTMETA_INLINE void sum_each(const Vector<R>* x, R* sums) {
  constexpr int group = 16 / int(sizeof(R));
  constexpr int whole = K / group * group;
#pragma GCC unroll 8
  for (int k = 0; k < whole; k += group) {
    const auto sum = sums_of(x + k);
    std::memcpy(sums + k, &sum, sizeof sum);
  }
#pragma GCC unroll 4
  for (int k = whole; k < K; k++) sums[k] = sum_lanes<R>(x[k]);
}

}  // namespace fastmeta::FASTMETA_ISA
