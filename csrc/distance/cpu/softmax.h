// Softmax of a block, one query per lane of arrays [N, kBlock]: z_n = -d_n / temperature, p = softmax(z).
// Sums over the classes are sums of short sums, so that their error does not grow with N.
#pragma once
#include "distance/cpu/distance.h"

namespace fastmeta::FASTMETA_ISA {

constexpr int64_t kShortSum = 16;

// 1 / temperature, finite: what is nearest stays at 0.
template <class R>
FASTMETA_INLINE R rate_of(double temperature) {
  return 1 / temperature < double(kFarthest<R>) ? R(1 / temperature) : kFarthest<R>;
}

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
void block_softmax(int64_t N, double temperature, const R* distances, R* exps, Softmax<R>& s) {
  const R rate = rate_of<R>(temperature);
#pragma omp simd
  for (int q = 0; q < kBlock; q++) s.nearest[q] = R(__builtin_inf());
  for (int64_t n = 0; n < N; n++)
#pragma omp simd
    for (int q = 0; q < kBlock; q++) {
      const R distance = distances[n * kBlock + q];
      s.nearest[q] = distance < s.nearest[q] ? distance : s.nearest[q];
    }
  sum_classes(N, s.sum, [&](int64_t n, int q) __attribute__((always_inline)) {
    const R e = exp_approx((s.nearest[q] - distances[n * kBlock + q]) * rate);
    if (exps) exps[n * kBlock + q] = e;
    return e;
  });
#pragma omp simd
  for (int q = 0; q < kBlock; q++) s.log_sum[q] = log_approx(s.sum[q]);
}

// By how much a pair is near (distance.h), from its distance, X = R or Vector<R>: positive where it is.
template <class R, class X>
FASTMETA_INLINE X nearness(Metric metric, X distance, X radius_q, R radius_n) {
  const X square = metric == Metric::euclidean ? distance * distance : metric == Metric::cosine ? 2 * distance : distance;
  return radius_q + radius_n - R(kNear) * square;
}

// The coefficient of q - c in a gradient, from that of the distance, X = R or Vector<R>.
template <class X>
FASTMETA_INLINE X coefficient(Metric metric, X distance, X ddistance) {
  if (metric == Metric::sqeuclidean) return ddistance + ddistance;
  const X zero = {};
  return metric == Metric::cosine ? ddistance : distance == zero ? zero : ddistance / distance;
}

// Whether any of the pairs of prototypes [begin, end) is near.
template <Metric metric, class R>
FASTMETA_INLINE bool any_near(const Panels<R>& panels, const Block<R>& block, int64_t begin, int64_t end) {
  Columns<R> radius, largest = {};
  load_columns<R>(block.radius, radius);
  for (int64_t n = begin; n < end; n++)
#pragma GCC unroll 8
    for (int part = 0; part < kParts<R>; part++) {
      const Vector<R> found = nearness<R>(metric, load(block.distances + n * kBlock + part * kLanes<R>), radius[part], panels.radius[n]);
      largest[part] = found > largest[part] ? found : largest[part];
    }
  R sum = 0;
  for (int part = 0; part < kParts<R>; part++) sum += sum_lanes<R>(largest[part]);
  return sum > 0;
}

// Moves the coefficients of near pairs into the block's list; their dz becomes 0.
template <Metric metric, class R>
inline void take_near(const ProtoProblem<R>& p, const Panels<R>& panels, R scale, R* dz, Block<R>& block) {
  if (!any_near<metric>(panels, block, 0, p.N)) return;
  for (int64_t n = 0; n < p.N; n++) {
    if (!any_near<metric>(panels, block, n, n + 1)) continue;
    for (int q = 0; q < block.count; q++) {
      const int64_t at = n * kBlock + q;
      const R distance = block.distances[at], weight = coefficient(metric, distance, scale * dz[at]);
      if (weight == 0 || !(nearness<R>(metric, distance, block.radius[q], panels.radius[n]) > 0)) continue;
      block.near[block.near_count++] = {int32_t(n), q, weight};
      dz[at] = 0;
    }
  }
}

// The coefficients in place of the distances, and their sums.
template <Metric metric, class R>
inline void replace_distances(const ProtoProblem<R>& p, R scale, const R* dz, Block<R>& block) {
  constexpr int kRowsAtOnce = 4;
  Columns<R> totals = {};
  for (int64_t n = 0; n < p.N; n += kRowsAtOnce) {
    Vector<R> rows[kRowsAtOnce] = {};
    const int count = int(least(kRowsAtOnce, p.N - n));
    for (int k = 0; k < count; k++)
#pragma GCC unroll 8
      for (int part = 0; part < kParts<R>; part++) {
        const int64_t at = (n + k) * kBlock + part * kLanes<R>;
        const Vector<R> weight = coefficient(metric, load(block.distances + at), scale * load(dz + at));
        store(block.distances + at, weight);
        totals[part] += weight;
        rows[k] += weight;
      }
    R sums[kRowsAtOnce];
    sum_each<R, kRowsAtOnce>(rows, sums);
    std::memcpy(block.sums + n, sums, size_t(count) * sizeof(R));
  }
  store_columns<R>(block.totals, totals);
}

template <Metric metric, class R>
inline void find_coefficients(const ProtoProblem<R>& p, const Panels<R>& panels, R* dz, Block<R>& block) {
  const R scale = -rate_of<R>(p.temperature);
  take_near<metric>(p, panels, scale, dz, block);
  replace_distances<metric>(p, scale, dz, block);
}

// sum dz (d - nearest) of the block. Rounded, the dz of a query do not quite sum to 0: what is left of their sum is taken at a mean
// distance that |dz| weights, where it counts little. `taken` [kBlock]: what else belongs to each lane's sum; null: nothing.
template <class R>
double sum_about_mean(int64_t N, const R* dz, const R* distances, const R* nearest, const R* taken, int64_t count) {
  R sums[4][kBlock];
  const auto sum = [&](R* total, auto&& term) __attribute__((always_inline)) {
    sum_classes(N, total, [&](int64_t n, int q) __attribute__((always_inline)) {
      return term(dz[n * kBlock + q], distances[n * kBlock + q] - nearest[q]);
    });
  };
  const auto size = [](R x) __attribute__((always_inline)) { return x < 0 ? -x : x; };
  sum(sums[0], [](R w, R x) __attribute__((always_inline)) { return w * x; });
  sum(sums[1], [](R w, R) __attribute__((always_inline)) { return w; });
  sum(sums[2], [&](R w, R x) __attribute__((always_inline)) { return size(w) * x; });
  sum(sums[3], [&](R w, R) __attribute__((always_inline)) { return size(w); });
  double found = 0;
  for (int64_t q = 0; q < count; q++) {
    const double left = double(sums[1][q]) + (taken ? double(taken[q]) : 0), rest = left * double(sums[2][q]) / double(sums[3][q]);
    found += double(sums[0][q]) - (rest - rest == 0 ? rest : 0);  // not finite: distances at the ends of R, or all dz are 0
  }
  return found;
}

// From dz [N, kBlock], whose lanes each sum to 0, but for what is `taken` from them, and are 0 beyond the block's queries: the coefficients
// in place of the distances (dz is used up), and dtemperature = sum dz d / temperature^2.
template <class R>
void block_coefficients(const ProtoProblem<R>& p, const Panels<R>& panels, R* dz, const R* nearest, const R* taken, Block<R>& block) {
  if (p.dtemperature)
    block.dtemperature =
        (block.dtemperature + sum_about_mean(p.N, dz, block.distances, nearest, taken, block.count)) / (p.temperature * p.temperature);
  if (!p.dquery && !p.dprototypes) return;
  if (p.kept_distances || (p.N > kFew && !by_products(p))) find_radii(p, panels, block);
  if (p.metric == Metric::euclidean) find_coefficients<Metric::euclidean>(p, panels, dz, block);
  if (p.metric == Metric::sqeuclidean) find_coefficients<Metric::sqeuclidean>(p, panels, dz, block);
  if (p.metric == Metric::cosine) find_coefficients<Metric::cosine>(p, panels, dz, block);
}

// Compiled once, in distance.cpp.
#define FASTMETA_SOFTMAX(EXTERN, R)                                                  \
  EXTERN template void block_softmax<R>(int64_t, double, const R*, R*, Softmax<R>&); \
  EXTERN template void block_coefficients<R>(const ProtoProblem<R>&, const Panels<R>&, R*, const R*, const R*, Block<R>&);
FASTMETA_SOFTMAX(extern, float)
FASTMETA_SOFTMAX(extern, double)

}  // namespace fastmeta::FASTMETA_ISA
