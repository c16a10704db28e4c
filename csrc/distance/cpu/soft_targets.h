// Targets that are shares of all prototypes: loss = sum_n t_n (-log p_n), dz = (sum_n t_n) p - t, dt_n = -log p_n. A block's shares lie as
// its distances do, [N, kBlock].
#pragma once
#include "distance/cpu/replaced.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
struct SoftTargets {
  R *shares, *room;                  // [N, kBlock] each; null: targets are classes
  R total[kBlock], farther[kBlock];  // sum_n t_n, sum_n t_n (d_n - nearest)
  bool of_excluded[kBlock];          // a share of what does not count
};

template <class R>
int64_t share_row(const ProtoLoss<R>& p, const Block<R>& block) {
  return (block.task * p.Q + block.first) * p.N;
}

// Where what does not count is infinitely far, it is near meanwhile: its share is 0.
template <class R>
void find_shares(const ProtoLoss<R>& p, Block<R>& block, const Softmax<R>& s, SoftTargets<R>& soft) {
  const int64_t query = block.task * p.Q + block.first, row = share_row(p, block);
  transpose(block.count, p.N, read(p.soft_targets, row, block.count * p.N, soft.room), p.N, soft.shares, kBlock);
  for (int64_t q = 0; q < block.count; q++) {
    const int64_t out = excluded_of(p, query + q);
    soft.of_excluded[q] = out >= 0 && soft.shares[out * kBlock + q] != 0;
    if (out >= 0) block.distances[out * kBlock + q] = s.nearest[q];
  }
  sum_classes(p.N, soft.total, [&](int64_t n, int q) __attribute__((always_inline)) { return soft.shares[n * kBlock + q]; });
  sum_classes(p.N, soft.farther, [&](int64_t n, int q) __attribute__((always_inline)) {
    return soft.shares[n * kBlock + q] * (block.distances[n * kBlock + q] - s.nearest[q]);
  });
  for (int64_t q = 0; q < block.count; q++)
    if (const int64_t out = excluded_of(p, query + q); out >= 0) block.distances[out * kBlock + q] = R(__builtin_inf());
}

// The class of a query, as far as accuracy goes: the first of its largest shares.
template <class R>
int64_t largest_share(const SoftTargets<R>& soft, int64_t N, int64_t q) {
  int64_t found = 0;
  for (int64_t n = 1; n < N; n++) found = soft.shares[n * kBlock + q] > soft.shares[found * kBlock + q] ? n : found;
  return found;
}

// The gradients to the shares, each query's times its weight; the shares are used up.
template <class R>
void put_dshares(const ProtoLoss<R>& p, const Block<R>& block, const Softmax<R>& s, const R* weights, const SoftTargets<R>& soft) {
  const int64_t query = block.task * p.Q + block.first, row = share_row(p, block);
  for (int64_t n = 0; n < p.N; n++)
#pragma omp simd
    for (int q = 0; q < kBlock; q++)
      soft.room[n * kBlock + q] = weights[q] * ((block.distances[n * kBlock + q] - s.nearest[q]) / R(p.temperature) + s.log_sum[q]);
  for (int64_t q = 0; q < block.count; q++)
    if (const int64_t out = excluded_of(p, query + q); out >= 0) soft.room[out * kBlock + q] = 0;
  R* rows = place(p.dsoft_targets, row, soft.shares);
  store_rows(p.N, block.count, soft.room, rows);
  put(p.dsoft_targets, row, block.count * p.N, rows);
}

}  // namespace fastmeta::FASTMETA_ISA
