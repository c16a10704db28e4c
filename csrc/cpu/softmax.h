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

// The squared distance and the coefficient of the difference that a pair's distance and gradient -dz/temperature give.
template <class R, Metric metric>
FASTMETA_INLINE R square_of(R distance) {
  return metric == Metric::euclidean ? distance * distance : metric == Metric::cosine ? 2 * distance : distance;
}
template <class R, Metric metric>
FASTMETA_INLINE R coefficient_of(R distance, R ddistance) {
  if (metric == Metric::sqeuclidean) return 2 * ddistance;
  return metric == Metric::cosine ? ddistance : distance == 0 ? R(0) : ddistance / distance;
}

template <class R, Metric metric>
inline void replace_distances(const ProtoProblem<R>& p, const Panels<R>& panels, const R* dz, Block<R>& block) {
  const R scale = R(-1 / p.temperature);
  R totals[kBlock] = {};
  for (int64_t n = 0; n < p.N; n++) {
    R *distances = block.distances + n * kBlock, coefficients[kBlock], sum = 0;
    int near[kBlock], any = 0;
#pragma omp simd reduction(| : any)
    for (int q = 0; q < kBlock; q++) {
      coefficients[q] = coefficient_of<R, metric>(distances[q], scale * dz[n * kBlock + q]);
      near[q] = kNear * square_of<R, metric>(distances[q]) < panels.radius[n] + block.radius[q];
      any |= near[q];
    }
    for (int q = 0; any && q < block.count; q++)
      if (near[q] && coefficients[q] != 0) {
        block.near[block.near_count++] = {int32_t(n), q, coefficients[q]};
        coefficients[q] = 0;
      }
#pragma omp simd reduction(+ : sum)
    for (int q = 0; q < kBlock; q++) {
      distances[q] = coefficients[q];
      totals[q] += coefficients[q];
      sum += coefficients[q];
    }
    block.sums[n] = sum;
  }
  std::memcpy(block.totals, totals, sizeof totals);
}

// From dz [N, kBlock], whose lanes each sum to 0 and are 0 beyond the block's queries: the coefficients in place of the
// distances, and dtemperature = sum dz d / temperature^2, taken about the nearest distance.
template <class R>
inline void block_coefficients(const ProtoProblem<R>& p, const Panels<R>& panels, const R* dz, const R* nearest,
                               Block<R>& block) {
  if (p.dtemperature) {
    R total[kBlock];
    sum_classes(p.N, total, [&](int64_t n, int q) __attribute__((always_inline)) {
      return dz[n * kBlock + q] * (block.distances[n * kBlock + q] - nearest[q]);
    });
    for (int64_t q = 0; q < block.count; q++) block.dtemperature += double(total[q]);
    block.dtemperature /= p.temperature * p.temperature;
  }
  if (!p.dquery && !p.dprototypes) return;
  const R* queries = p.query + (block.task * p.Q + block.first) * p.D;
  for (int64_t q = 0; q < kBlock; q++)
    block.radius[q] = q < block.count ? radius_of(queries + q * p.D, panels.centre, p.D) : R(0);
  if (p.metric == Metric::euclidean) replace_distances<R, Metric::euclidean>(p, panels, dz, block);
  if (p.metric == Metric::sqeuclidean) replace_distances<R, Metric::sqeuclidean>(p, panels, dz, block);
  if (p.metric == Metric::cosine) replace_distances<R, Metric::cosine>(p, panels, dz, block);
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
