// A number or two of each query that a loss puts in place of distances before the softmax, and takes out again for the gradients: what does
// not count, the distance and the margin of the target; and the prototypes' biases, of which the distances are kept.
#pragma once
#include "distance/cpu/softmax.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
FASTMETA_INLINE bool ignores(const ProtoLoss<R>& p, int64_t query) {
  return p.targets && p.targets[query] == p.ignore_index;
}

// The prototype of the query's target, or -1 where it has none that counts; with classes and soft targets always.
template <class R>
int64_t class_of(const ProtoLoss<R>& p, int64_t query) {
  if (!p.targets) return -1;
  const int64_t target = p.targets[query];
  const bool counts = !p.classes && target >= 0 && target < p.N && target != p.ignore_index && !(p.exclude && p.exclude[query] == target);
  return counts ? target : -1;
}

// The prototype that does not count for a query, or -1. One that is ignored has all, so that something is left.
template <class R>
int64_t excluded_of(const ProtoLoss<R>& p, int64_t query) {
  const bool one = p.exclude && p.exclude[query] >= 0 && p.exclude[query] < p.N && !ignores(p, query);
  return one ? p.exclude[query] : -1;
}

// What is there for each prototype of a task, or of all.
template <class R, class X>
const X* of_task(const ProtoLoss<R>& p, int64_t task, const X* each) {
  return each && p.prototypes_stride ? each + task * p.N : each;
}

// What the softmax of a block sees in place of distances, and back. `raw` [N, kBlock]: room for the distances where there is a bias,
// or null where they are not wanted back.
template <class R>
class Replaced {
 public:
  Replaced(const ProtoLoss<R>& p, int64_t query, Block<R>& block, R* raw)
      : p_(p), query_(query), block_(block), bias_(of_task(p, block.task, p.bias)), raw_(bias_ ? raw : nullptr) {
    if (raw_) std::memcpy(raw_, block.distances, size_t(p.N * kBlock) * sizeof(R));
    for (int64_t n = 0; bias_ && n < p.N; n++) {
      const R nearer = R(double(bias_[n]) * p.temperature);
#pragma omp simd
      for (int q = 0; q < kBlock; q++) block.distances[n * kBlock + q] -= nearer;
    }
    for (int64_t q = 0; any() && q < block.count; q++) {
      if (const int64_t n = excluded_of(p, query + q); n >= 0) {
        R& distance = block.distances[n * kBlock + q];
        excluded_[q] = distance, distance = R(__builtin_inf());
      }
      if (const int64_t n = class_of(p, query + q); n >= 0) {
        R& distance = block.distances[n * kBlock + q];
        target_[q] = distance, distance = R((p.target_distance ? given(q, n) : distance) + p.margin * p.temperature);
      }
    }
  }

  // The margin itself in place of what a large distance, to which it was added, has left of it.
  void refine(Softmax<R>& s, R* exps) {
    const R rate = rate_of<R>(p_.temperature);
    for (int64_t q = 0; p_.margin != 0 && q < block_.count; q++) {
      const int64_t n = class_of(p_, query_ + q);
      if (n < 0) continue;
      R& distance = block_.distances[n * kBlock + q];
      const R rough = exp_approx((s.nearest[q] - distance) * rate);
      distance = p_.target_distance ? given(q, n) : target_[q];
      const R fine = exp_approx((s.nearest[q] - distance) * rate - R(p_.margin));
      s.sum[q] += fine - rough;
      s.log_sum[q] = log_approx(s.sum[q]);
      if (exps) exps[n * kBlock + q] = fine;
    }
  }

  // The distances are back; from dz, dtarget_distance and its part of dtemperature, after which dz at what was given is 0.
  void undo(const Softmax<R>& s, R* dz) {
    for (int64_t q = 0; any() && q < block_.count; q++) {
      if (const int64_t n = excluded_of(p_, query_ + q); n >= 0) block_.distances[n * kBlock + q] = excluded_[q], dz[n * kBlock + q] *= 0;
      const int64_t n = class_of(p_, query_ + q);
      if (n >= 0) block_.distances[n * kBlock + q] = target_[q];
      if (!p_.target_distance) continue;
      R dgiven = p_.targets[query_ + q] == p_.ignore_index ? R(0) : R(__builtin_nan(""));
      if (n >= 0) {
        R& d = dz[n * kBlock + q];
        dgiven = d, d = 0;
        block_.dtemperature += double(dgiven) * double(given(q, -1) - s.nearest[q]);
      }
      taken_[q] = dgiven;
      if (p_.dtarget_distance) p_.dtarget_distance[query_ + q] = R(-double(dgiven) / p_.temperature);
    }
    if (raw_) std::memcpy(block_.distances, raw_, size_t(p_.N * kBlock) * sizeof(R));
  }

  // After undo: what it took from each query's dz, or null.
  const R* taken() const { return p_.target_distance ? taken_ : nullptr; }

 private:
  // The distance in place of that of the target n, which then has its bias. Those to a zero vector, 1 each, are 1/2 in the block: it has
  // half of |q - c|^2.
  R given(int64_t q, int64_t n) const {
    const bool zero = p_.metric == Metric::cosine && block_.inverse_norms[q] == 0;
    const R nearer = bias_ && n >= 0 ? R(double(bias_[n]) * p_.temperature) : R(0);
    return p_.target_distance[query_ + q] - (zero ? R(0.5) : R(0)) - nearer;
  }
  bool any() const { return p_.exclude || p_.target_distance || p_.margin != 0; }

  const ProtoLoss<R>& p_;
  int64_t query_;
  Block<R>& block_;
  const R* bias_;
  R* raw_;
  R target_[kBlock], excluded_[kBlock], taken_[kBlock];
};

}  // namespace fastmeta::FASTMETA_ISA
