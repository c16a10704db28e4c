// Blocks of kBlock queries against N prototypes. A block's distances, and later its coefficients, are an [N, kBlock]
// array: one query per lane, so that softmax runs over whole vectors however few classes there are, and all that a
// block needs beside its inputs is O(kBlock * N). Features pass in chunks of kChunk, so that the rows of a group of
// prototypes (or queries) stay in the first-level cache, and so that long sums are sums of short ones. A subtraction
// and a multiply-add for each feature of each pair in each of three passes: distances, dquery, dprototypes.
#pragma once
#include "../proto.h"
#include "vector.h"

namespace fastmeta::FASTMETA_ISA {

constexpr int kBlock = 16;
constexpr int64_t kChunk = 256;
constexpr int kGroup = 8;  // rows that share each load of the other operand

FASTMETA_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
FASTMETA_INLINE double square_root(double x) { return __builtin_sqrt(x); }
FASTMETA_INLINE float logarithm(float x) { return __builtin_logf(x); }
FASTMETA_INLINE double logarithm(double x) { return __builtin_log(x); }
FASTMETA_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FASTMETA_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

template <int size>
struct Size {
  static constexpr int value = size;
};

// Calls f(Size<k>(), first) on groups of nearly equal size k <= kGroup that cover [0, count).
template <class F>
FASTMETA_INLINE void for_each_group(int64_t count, F&& f) {
  const int64_t groups = (count + kGroup - 1) / kGroup;
  int64_t first = 0;
  for (int64_t i = 0; i < groups; i++) {
    const int64_t size = count / groups + (i < count % groups);
    switch (size) {
      case 1: f(Size<1>(), first); break;
      case 2: f(Size<2>(), first); break;
      case 3: f(Size<3>(), first); break;
      case 4: f(Size<4>(), first); break;
      case 5: f(Size<5>(), first); break;
      case 6: f(Size<6>(), first); break;
      case 7: f(Size<7>(), first); break;
      default: f(Size<8>(), first);
    }
    first += size;
  }
}

// out[k] = |x - row_k|^2 over `width` features, or += with `add`, for K rows.
template <class R, int K>
FASTMETA_INLINE void squared_distances(int64_t width, const R* x, const R* rows, int64_t row_length, R* out, bool add) {
  Vector<R> sum[K] = {};
  int64_t d = 0;
  for (; d + kLanes<R> <= width; d += kLanes<R>) {
    const Vector<R> value = load(x + d);
#pragma GCC unroll 8
    for (int k = 0; k < K; k++) {
      const Vector<R> difference = value - load(rows + k * row_length + d);
      sum[k] += difference * difference;
    }
  }
  R total[K];
  sum_each<R, K>(sum, total);
  for (; d < width; d++)
#pragma GCC unroll 8
    for (int k = 0; k < K; k++) {
      const R difference = x[d] - rows[k * row_length + d];
      total[k] += difference * difference;
    }
#pragma GCC unroll 8
  for (int k = 0; k < K; k++) out[k] = add ? out[k] + total[k] : total[k];
}

// out[d] = sum_k weights[k * stride] (x[d] - row_k[d]), or += with `add`, for K rows.
template <class R, int K>
FASTMETA_INLINE void weighted_differences(int64_t width, const R* x, const R* rows, int64_t row_length,
                                          const R* weights, int64_t stride, R* out, bool add) {
  R weight[K];
#pragma GCC unroll 8
  for (int k = 0; k < K; k++) weight[k] = weights[k * stride];
  int64_t d = 0;
  for (; d + kLanes<R> <= width; d += kLanes<R>) {
    const Vector<R> value = load(x + d);
    Vector<R> sum[2] = {};  // two shorter chains
#pragma GCC unroll 8
    for (int k = 0; k < K; k++) sum[k % 2] += weight[k] * (value - load(rows + k * row_length + d));
    store(out + d, add ? load(out + d) + (sum[0] + sum[1]) : sum[0] + sum[1]);
  }
  for (; d < width; d++) {
    R sum = weight[0] * (x[d] - rows[d]);
#pragma GCC unroll 8
    for (int k = 1; k < K; k++) sum += weight[k] * (x[d] - rows[k * row_length + d]);
    out[d] = add ? out[d] + sum : sum;
  }
}

// Distances [N, kBlock] of `count` queries; the lanes beyond them get 0.
template <class R>
inline void block_distances(const ProtoProblem<R>& p, int64_t task, int64_t first, int64_t count, R* distances) {
  const R* queries = p.query + (task * p.Q + first) * p.D;
  const R* prototypes = p.prototypes + task * p.prototypes_stride;
  if (count < kBlock || p.D == 0) std::memset(distances, 0, size_t(p.N) * kBlock * sizeof(R));
  for (int64_t d = 0; d < p.D; d += kChunk)
    for_each_group(count, [&](auto size, int64_t q) {
      for (int64_t n = 0; n < p.N; n++)
        squared_distances<R, decltype(size)::value>(least(kChunk, p.D - d), prototypes + n * p.D + d,
                                                    queries + q * p.D + d, p.D, distances + n * kBlock + q, d > 0);
    });
  if (p.metric == Metric::euclidean)
#pragma omp simd
    for (int64_t i = 0; i < p.N * kBlock; i++) distances[i] = square_root(distances[i]);
  if (p.metric == Metric::cosine) {  // 1 - cos = |q - c|^2 / 2 of unit vectors; cos = 0 to a zero vector
    const R* inverse_norms = p.inverse_norms + task * (p.prototypes_stride ? p.N : 0);
    for (int64_t n = 0; n < p.N; n++) {
      const R zero = inverse_norms[n] == 0 ? R(0.5) : R(0);
#pragma omp simd
      for (int q = 0; q < kBlock; q++) distances[n * kBlock + q] = R(0.5) * distances[n * kBlock + q] + zero;
    }
  }
}

// dquery of a block from its coefficients [N, kBlock]: dquery_q = sum_n coefficient_nq (q - c_n).
template <class R>
inline void block_dquery(const ProtoProblem<R>& p, int64_t task, int64_t first, int64_t count, const R* coefficients) {
  const R* queries = p.query + (task * p.Q + first) * p.D;
  const R* prototypes = p.prototypes + task * p.prototypes_stride;
  R* out = p.dquery + (task * p.Q + first) * p.D;
  if (p.N == 0 && p.D > 0) std::memset(out, 0, size_t(count * p.D) * sizeof(R));
  for (int64_t d = 0; d < p.D; d += kChunk)
    for_each_group(p.N, [&](auto size, int64_t n) {
      for (int64_t q = 0; q < count; q++)
        weighted_differences<R, decltype(size)::value>(least(kChunk, p.D - d), queries + q * p.D + d,
                                                       prototypes + n * p.D + d, p.D, coefficients + n * kBlock + q,
                                                       kBlock, out + q * p.D + d, n > 0);
    });
}

// The part of one block in dprototypes_n = sum_q coefficient_nq (c_n - q), for prototypes [n, n + rows) and features
// [d, d + kChunk): out [rows, out_length], or += with `add`. `coefficients` begin at prototype n.
template <class R>
inline void block_dprototypes(const ProtoProblem<R>& p, int64_t task, int64_t first, int64_t count,
                              const R* coefficients, int64_t n, int64_t rows, int64_t d, R* out, int64_t out_length,
                              bool add) {
  const R* queries = p.query + (task * p.Q + first) * p.D + d;
  const R* prototypes = p.prototypes + task * p.prototypes_stride + n * p.D + d;
  for_each_group(count, [&](auto size, int64_t q) {
    for (int64_t row = 0; row < rows; row++)
      weighted_differences<R, decltype(size)::value>(least(kChunk, p.D - d), prototypes + row * p.D,
                                                     queries + q * p.D, p.D, coefficients + row * kBlock + q, 1,
                                                     out + row * out_length, add || q > 0);
  });
}

}  // namespace fastmeta::FASTMETA_ISA
