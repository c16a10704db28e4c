// Several prototypes of one class: p(class) is their sum, log p = log sum_same exp(z) - log sum_all exp(z), with a softmax of its own
// about the nearest of them. They are few in a block's [N, kBlock] pairs, so each is looked at by itself.
#pragma once
#include "distance/cpu/replaced.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
struct Positives {
  R nearest[kBlock];  // infinite: there is none
  R sum[kBlock];
  R log_sum[kBlock];
};

// body(n, q) for the block's pairs of one class, in order of n.
template <class R, class Body>
FASTMETA_INLINE void for_each_positive(const ProtoLoss<R>& p, const Block<R>& block, Body&& body) {
  const int64_t* classes = of_task(p, block.task, p.classes);
  const int64_t* targets = p.targets + block.task * p.Q + block.first;
  int64_t wanted[kBlock];
  for (int64_t q = 0; q < kBlock; q++) wanted[q] = targets[least(q, block.count - 1)];
  for (int64_t n = 0; n < p.N; n++) {
    bool found = false;
#pragma omp simd reduction(| : found)
    for (int q = 0; q < kBlock; q++) found |= wanted[q] == classes[n];
    for (int64_t q = 0; found && q < block.count; q++)
      if (wanted[q] == classes[n]) body(n, q);
  }
}

template <class R>
void find_positives(const ProtoLoss<R>& p, const Block<R>& block, Positives<R>& found) {
  const R rate = rate_of<R>(p.temperature);
  for (int q = 0; q < kBlock; q++) found.nearest[q] = R(__builtin_inf()), found.sum[q] = 0;
  for_each_positive(p, block, [&](int64_t n, int64_t q) {
    const R distance = block.distances[n * kBlock + q];
    if (!(distance >= found.nearest[q])) found.nearest[q] = distance;
  });
  for_each_positive(p, block,
                    [&](int64_t n, int64_t q) { found.sum[q] += exp_approx((found.nearest[q] - block.distances[n * kBlock + q]) * rate); });
#pragma omp simd
  for (int q = 0; q < kBlock; q++) found.log_sum[q] = log_approx(found.sum[q]);
}

// dz of the class's own part: less weight times their share of it.
template <class R>
void add_positives(const ProtoLoss<R>& p, const Block<R>& block, const Positives<R>& found, const R* weights, R* dz) {
  const R rate = rate_of<R>(p.temperature);
  for_each_positive(p, block, [&](int64_t n, int64_t q) {
    const R share = exp_approx((found.nearest[q] - block.distances[n * kBlock + q]) * rate) / found.sum[q];
    dz[n * kBlock + q] -= weights[q] * share;
  });
}

}  // namespace fastmeta::FASTMETA_ISA
