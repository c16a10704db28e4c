// log p(y = k | x) = logsumexp over the support of class k - logsumexp over all, of z = -d(x, x_s) / temperature. A thread
// owns a block of 16 queries, whose [S, 16] distances and [ways, 16] class sums stay in cache (see distance.h): 3 flops for
// each feature of each pair forward, which keeps the distances, and 4 backward. Each class has its own largest z, so that a
// class far behind the nearest one keeps its digits.
#include "distance/cpu/blocks.h"
#include "runtime/cpu/kernels.h"
#include "distance/cpu/softmax.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

// How many arrays [N, kBlock] hold `of_ways` arrays [ways, kBlock].
template <class R>
int arrays(const MatchingLogProbs<R>& p, int of_ways) {
  return int((of_ways * p.ways + p.N - 1) / p.N);
}

template <class R>
bool labels_in_range(const MatchingLogProbs<R>& p, const int64_t* labels) {
  for (int64_t s = 0; s < p.N; s++)
    if (labels[s] < 0 || labels[s] >= p.ways) return false;
  return true;
}

// From the distances: e_s = exp((nearest_k - d_s) / temperature) with the nearest of its class (in `exps`, unless null), each
// class's sum of these, and log p; the distance of the nearest of all in `nearest`. NaN everywhere where a label is out of
// range. Returns whether all are in range.
template <class R>
bool class_log_probs(const MatchingLogProbs<R>& p, const int64_t* labels, const R* distances, R* exps, R* class_nearest, R* class_sum,
                     R* log_probs, R* nearest) {
  const R rate = rate_of<R>(p.temperature);
  if (!labels_in_range(p, labels)) {
    for (int64_t i = 0; i < p.ways * kBlock; i++) log_probs[i] = R(__builtin_nan(""));
    return false;
  }
  for (int64_t i = 0; i < p.ways * kBlock; i++) class_nearest[i] = kFarthest<R>, class_sum[i] = 0;
  for (int64_t s = 0; s < p.N; s++) {
    R* near = class_nearest + labels[s] * kBlock;
#pragma omp simd
    for (int q = 0; q < kBlock; q++) near[q] = distances[s * kBlock + q] < near[q] ? distances[s * kBlock + q] : near[q];
  }
  for (int64_t s = 0; s < p.N; s++) {
    R *near = class_nearest + labels[s] * kBlock, *sum = class_sum + labels[s] * kBlock;
#pragma omp simd
    for (int q = 0; q < kBlock; q++) {
      const R e = exp_approx((near[q] - distances[s * kBlock + q]) * rate);
      if (exps) exps[s * kBlock + q] = e;
      sum[q] += e;
    }
  }
#pragma omp simd
  for (int q = 0; q < kBlock; q++) nearest[q] = kFarthest<R>;
  for (int64_t k = 0; k < p.ways; k++)
#pragma omp simd
    for (int q = 0; q < kBlock; q++) nearest[q] = class_nearest[k * kBlock + q] < nearest[q] ? class_nearest[k * kBlock + q] : nearest[q];
  R total[kBlock];
  sum_classes(p.ways, total, [&](int64_t k, int q) __attribute__((always_inline)) {
    return class_sum[k * kBlock + q] * exp_approx((nearest[q] - class_nearest[k * kBlock + q]) * rate);
  });
#pragma omp simd
  for (int q = 0; q < kBlock; q++) total[q] = log_approx(total[q]);
  for (int64_t k = 0; k < p.ways; k++)
#pragma omp simd
    for (int q = 0; q < kBlock; q++) {
      const int64_t i = k * kBlock + q;
      log_probs[i] = (nearest[q] - class_nearest[i]) * rate + log_approx(class_sum[i]) - total[q];
    }
  return true;
}

template <class R>
const int64_t* labels_of(const MatchingLogProbs<R>& p, int64_t task) {
  return p.labels + task * (p.prototypes_stride ? p.N : 0);
}

}  // namespace

template <class R>
void matching_log_probs_fwd(const MatchingLogProbs<R>& p) {
  const int64_t array = p.ways * kBlock;
  for_each_block(
      static_cast<const ProtoProblem<R>&>(p), arrays(p, 3),
      [&](Block<R>& block, const Panels<R>&, R* class_nearest) {
        R *class_sum = class_nearest + array, *log_probs = class_sum + array, nearest[kBlock];
        class_log_probs(p, labels_of(p, block.task), block.distances, static_cast<R*>(nullptr), class_nearest, class_sum, log_probs,
                        nearest);
        const int64_t row = (block.task * p.Q + block.first) * p.ways;
        R* rows = place(p.log_probs, row, class_nearest);
        store_rows(p.ways, block.count, log_probs, rows);
        put(p.log_probs, row, block.count * p.ways, rows);
      },
      [](int64_t, double, double) {});
}

template <class R>
void matching_log_probs_bwd(const MatchingLogProbs<R>& p) {
  const int64_t array = p.ways * kBlock;
  for_each_block(
      static_cast<const ProtoProblem<R>&>(p), 1 + arrays(p, 4),
      [&](Block<R>& block, const Panels<R>& panels, R* dz) {
        const int64_t* labels = labels_of(p, block.task);
        R *class_nearest = dz + p.N * kBlock, *class_sum = class_nearest + array;
        R *weights = class_sum + array, *cotangents = weights + array, nearest[kBlock], total[kBlock];
        const bool valid = class_log_probs(p, labels, block.distances, dz, class_nearest, class_sum, weights, nearest);
        const int64_t row = (block.task * p.Q + block.first) * p.ways;
        transpose(block.count, p.ways, read(p.dlog_probs, row, block.count * p.ways, class_nearest), p.ways, cotangents, kBlock);
        sum_classes(p.ways, total, [&](int64_t k, int q) __attribute__((always_inline)) {
          return cotangents[k * kBlock + q] + 0 * weights[k * kBlock + q];  // NaN where log p is -inf: it has no gradient
        });
        for (int64_t k = 0; valid && k < p.ways; k++)  // (dlogp_k - p_k sum dlogp) / sum_k e
#pragma omp simd
          for (int q = 0; q < kBlock; q++) {
            const int64_t i = k * kBlock + q;
            weights[i] = (cotangents[i] - total[q] * exp_approx(weights[i])) / class_sum[i];
          }
        for (int64_t s = 0; s < p.N; s++) {
          const R* weight = weights + (valid ? labels[s] * kBlock : 0);
#pragma omp simd
          for (int q = 0; q < kBlock; q++) dz[s * kBlock + q] = valid ? weight[q] * dz[s * kBlock + q] : weight[q];
        }
        block_coefficients<R>(p, panels, dz, nearest, nullptr, block);
      },
      [&](int64_t task, double, double dtemperature) {
        if (p.dtemperature) p.dtemperature[task] = dtemperature;
      });
}

template void matching_log_probs_fwd(const MatchingLogProbs<float>&);
template void matching_log_probs_fwd(const MatchingLogProbs<double>&);
template void matching_log_probs_bwd(const MatchingLogProbs<float>&);
template void matching_log_probs_bwd(const MatchingLogProbs<double>&);

}  // namespace fastmeta::FASTMETA_ISA
