// A loss of both sides, queries against prototypes and prototypes against queries: the softmax of one side leaves its sums for the other,
// whose gradients are then those of both.
#pragma once
#include "distance/cpu/softmax.h"

namespace fastmeta::FASTMETA_ISA {

// With "cosine" the distances of a zero query, 1 each, are 1/2 in a block: a softmax over prototypes does not see it, one over queries
// does. In what the other side kept, those of a zero prototype are.
template <class R>
void complete_distances(const ProtoLoss<R>& p, const Panels<R>& panels, Block<R>& block) {
  if (p.metric != Metric::cosine) return;
  for (int64_t n = 0; n < p.N; n++)
    for (int64_t q = 0; q < block.count; q++)
      if ((p.kept_by_prototypes ? panels.inverse_norms[n] : block.inverse_norms[q]) == 0) block.distances[n * kBlock + q] += R(0.5);
}

template <class R>
void leave_sums(const ProtoLoss<R>& p, const Block<R>& block, const Softmax<R>& s) {
  const int64_t query = block.task * p.Q + block.first;
  std::memcpy(p.nearest + query, s.nearest, size_t(block.count) * sizeof(R));
  std::memcpy(p.log_sum + query, s.log_sum, size_t(block.count) * sizeof(R));
}

// dz of the other side, weight (softmax - one_hot) over the queries of each prototype. The lanes' sums are then not 0: `taken` gets what
// they lack, and dtemperature its part.
template <class R>
void add_other_side(const ProtoLoss<R>& p, Block<R>& block, const Softmax<R>& s, const R* weights, R* dz, R* taken) {
  const R rate = rate_of<R>(p.temperature);
  const R *nearest = p.others_nearest + block.task * p.N, *log_sum = p.others_log_sum + block.task * p.N;
  for (int64_t n = 0; n < p.N; n++)
#pragma omp simd
    for (int q = 0; q < kBlock; q++)
      dz[n * kBlock + q] += weights[q] * exp_approx((nearest[n] - block.distances[n * kBlock + q]) * rate - log_sum[n]);
  for (int64_t q = 0; q < block.count; q++) dz[p.targets[block.task * p.Q + block.first + q] * kBlock + q] -= weights[q];
  sum_classes(p.N, taken, [&](int64_t n, int q) __attribute__((always_inline)) { return dz[n * kBlock + q]; });
  for (int64_t q = 0; q < block.count; q++) block.dtemperature += double(taken[q]) * double(s.nearest[q]), taken[q] = -taken[q];
}

}  // namespace fastmeta::FASTMETA_ISA
