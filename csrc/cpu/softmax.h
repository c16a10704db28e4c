// Softmax of a block, one query per lane of arrays [N, kBlock]: z_n = -d_n / temperature, p = softmax(z).
// Sums over the classes are sums of short sums, so that their error does not grow with N.
#pragma once
#include "distance.h"

namespace fastmeta::FASTMETA_ISA {

constexpr int64_t kShortSum = 16;

template <class R>
struct Softmax {
  R nearest[kBlock];  // min_n d_n
  R sum[kBlock];      // sum_n exp((nearest - d_n) / temperature)
  R log_sum[kBlock];
};

// total[q] = sum_n term(n, q).
template <class R, class Term>
FASTMETA_INLINE void sum_classes(int64_t N, R* total, Term&& term) {
#pragma omp simd
  for (int q = 0; q < kBlock; q++) total[q] = 0;
  for (int64_t begin = 0; begin < N; begin += kShortSum) {
    R part[kBlock] = {};
    for (int64_t n = begin; n < least(N, begin + kShortSum); n++)
#pragma omp simd
      for (int q = 0; q < kBlock; q++) part[q] += term(n, q);
#pragma omp simd
    for (int q = 0; q < kBlock; q++) total[q] += part[q];
  }
}

// Also leaves exp((nearest - d_n) / temperature) in `exps`, where that is not null.
template <class R>
inline void block_softmax(int64_t N, double temperature, const R* distances, R* exps, Softmax<R>& s) {
  const R tau = R(temperature);
#pragma omp simd
  for (int q = 0; q < kBlock; q++) s.nearest[q] = R(__builtin_inf());
  for (int64_t n = 0; n < N; n++)
#pragma omp simd
    for (int q = 0; q < kBlock; q++) {
      const R distance = distances[n * kBlock + q];
      s.nearest[q] = distance < s.nearest[q] ? distance : s.nearest[q];
    }
  sum_classes(N, s.sum, [&](int64_t n, int q) __attribute__((always_inline)) {
    const R e = exp_approx((s.nearest[q] - distances[n * kBlock + q]) / tau);
    if (exps) exps[n * kBlock + q] = e;
    return e;
  });
  for (int q = 0; q < kBlock; q++) s.log_sum[q] = logarithm(s.sum[q]);
}

// From dz [N, kBlock], whose lanes each sum to 0: the coefficients of the differences, in place of the distances.
// Returns dtemperature = sum dz d / temperature^2, taken about the nearest distance, for the first `count` lanes.
template <class R>
inline double block_coefficients(const ProtoProblem<R>& p, int64_t count, const R* dz, const R* nearest, R* distances) {
  double dtemperature = 0;
  if (p.dtemperature) {
    R total[kBlock];
    sum_classes(p.N, total, [&](int64_t n, int q) __attribute__((always_inline)) {
      return dz[n * kBlock + q] * (distances[n * kBlock + q] - nearest[q]);
    });
    for (int64_t q = 0; q < count; q++) dtemperature += double(total[q]);
    dtemperature /= p.temperature * p.temperature;
  }
  const R scale = R((p.metric == Metric::sqeuclidean ? -2 : -1) / p.temperature);
  if (p.metric != Metric::euclidean)
#pragma omp simd
    for (int64_t i = 0; i < p.N * kBlock; i++) distances[i] = scale * dz[i];
  else
#pragma omp simd
    for (int64_t i = 0; i < p.N * kBlock; i++) distances[i] = distances[i] == 0 ? R(0) : scale * dz[i] / distances[i];
  return dtemperature;
}

constexpr int64_t kCopied = 64;  // classes copied at a time, so that their lanes are still in cache

// rows [count, N] = lanes [N, kBlock] transposed.
template <class R>
inline void store_rows(int64_t N, int64_t count, const R* lanes, R* rows) {
  for (int64_t tile = 0; tile < N; tile += kCopied)
    for (int64_t q = 0; q < count; q++)
      for (int64_t n = tile; n < least(N, tile + kCopied); n++) rows[q * N + n] = lanes[n * kBlock + q];
}

// lanes [N, kBlock] = rows [count, N] transposed; the lanes beyond `count` get 0.
template <class R>
inline void load_rows(int64_t N, int64_t count, const R* rows, R* lanes) {
  if (count < kBlock && N > 0) std::memset(lanes, 0, size_t(N) * kBlock * sizeof(R));
  for (int64_t tile = 0; tile < N; tile += kCopied)
    for (int64_t q = 0; q < count; q++)
      for (int64_t n = tile; n < least(N, tile + kCopied); n++) lanes[n * kBlock + q] = rows[q * N + n];
}

}  // namespace fastmeta::FASTMETA_ISA
