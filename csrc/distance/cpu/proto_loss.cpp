// -log p(y = target | x) without the [Q, N] matrix. A thread owns a block of 16 queries: distances, losses, softmax and
// the coefficients of the gradients follow each other in [N, 16] arrays in cache (see distance.h), then the gradients.
// Forward and gradients: 7 flops for each feature of each pair, query and dquery in and out of memory once.
#include "distance/cpu/blocks.h"
#include "runtime/cpu/kernels.h"
#include "distance/cpu/softmax.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

// The target of a query, or -1 where it has none that counts.
template <class R>
int64_t class_of(const ProtoLoss<R>& p, int64_t query) {
  const int64_t target = p.targets[query];
  const bool counts = target >= 0 && target < p.N && target != p.ignore_index && !(p.exclude && p.exclude[query] == target);
  return counts ? target : -1;
}

// The prototype that does not count for a query, or -1. One that is ignored has all, so that something is left.
template <class R>
int64_t excluded_of(const ProtoLoss<R>& p, int64_t query) {
  const bool one = p.exclude && p.exclude[query] >= 0 && p.exclude[query] < p.N && p.targets[query] != p.ignore_index;
  return one ? p.exclude[query] : -1;
}

// What the softmax of a block sees in place of distances, and back.
template <class R>
class Replaced {
 public:
  Replaced(const ProtoLoss<R>& p, int64_t query, Block<R>& block) : p_(p), query_(query), block_(block) {
    for (int64_t q = 0; any() && q < block.count; q++) {
      if (const int64_t n = excluded_of(p, query + q); n >= 0) {
        R& distance = block.distances[n * kBlock + q];
        excluded_[q] = distance, distance = R(__builtin_inf());
      }
      if (const int64_t n = class_of(p, query + q); n >= 0) {
        R& distance = block.distances[n * kBlock + q];
        target_[q] = distance, distance = R((p.target_distance ? given(q) : distance) + p.margin * p.temperature);
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
      distance = p_.target_distance ? given(q) : target_[q];
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
        block_.dtemperature += double(dgiven) * double(given(q) - s.nearest[q]);
      }
      if (p_.dtarget_distance) p_.dtarget_distance[query_ + q] = R(-double(dgiven) / p_.temperature);
    }
  }

 private:
  // The distance in place of the target's. Those to a zero vector, 1 each, are 1/2 in the block: it has half of |q - c|^2.
  R given(int64_t q) const {
    const bool zero = p_.metric == Metric::cosine && block_.inverse_norms[q] == 0;
    return p_.target_distance[query_ + q] - (zero ? R(0.5) : R(0));
  }
  bool any() const { return p_.exclude || p_.target_distance || p_.margin != 0; }

  const ProtoLoss<R>& p_;
  int64_t query_;
  Block<R>& block_;
  R target_[kBlock], excluded_[kBlock];
};

// The block's losses; returns their sum.
template <class R>
double block_losses(const ProtoLoss<R>& p, int64_t query, int64_t count, const R* distances, const Softmax<R>& s) {
  double sum = 0;
  for (int64_t q = 0; q < count; q++) {
    const int64_t target = class_of(p, query + q);
    R loss = p.targets[query + q] == p.ignore_index ? R(0) : R(__builtin_nan(""));
    if (target >= 0) loss = (distances[target * kBlock + q] - s.nearest[q]) / R(p.temperature) + R(p.margin) + s.log_sum[q];
    if (p.query_loss) p.query_loss[query + q] = loss;
    sum += double(loss);
  }
  return sum;
}

// dz = weight (softmax - one_hot), in place of the exponentials; NaN for a target out of range.
template <class R>
void block_dlogits(const ProtoLoss<R>& p, int64_t task, int64_t query, int64_t count, const Softmax<R>& s, R* exps) {
  R weights[kBlock] = {}, scale[kBlock];
  for (int64_t q = 0; q < count; q++) {
    if (p.targets[query + q] == p.ignore_index) continue;
    const R weight = p.task_weight ? R(p.task_weight[task]) : p.query_weight[query + q];
    weights[q] = class_of(p, query + q) >= 0 ? weight : R(__builtin_nan(""));
  }
#pragma omp simd
  for (int q = 0; q < kBlock; q++) scale[q] = weights[q] / s.sum[q];
  for (int64_t n = 0; n < p.N; n++)
#pragma omp simd
    for (int q = 0; q < kBlock; q++) exps[n * kBlock + q] *= scale[q];
  for (int64_t q = 0; q < count; q++)
    if (const int64_t target = class_of(p, query + q); target >= 0) exps[target * kBlock + q] -= weights[q];
}

}  // namespace

template <class R>
void proto_loss(const ProtoLoss<R>& p) {
  const bool gradients = p.dquery || p.dprototypes || p.dtemperature || p.dtarget_distance;
  for_each_block(
      static_cast<const ProtoProblem<R>&>(p), gradients ? 1 : 0,
      [&](Block<R>& block, const Panels<R>& panels, R* exps) {
        const int64_t query = block.task * p.Q + block.first;
        Replaced<R> replaced(p, query, block);
        Softmax<R> s;
        block_softmax<R>(p.N, p.temperature, block.distances, gradients ? exps : nullptr, s);
        replaced.refine(s, gradients ? exps : nullptr);
        if (p.task_loss || p.query_loss) block.loss = block_losses(p, query, block.count, block.distances, s);
        if (!gradients) return;
        block_dlogits(p, block.task, query, block.count, s, exps);
        replaced.undo(s, exps);
        block_coefficients<R>(p, panels, exps, s.nearest, block);
      },
      [&](int64_t task, double loss, double dtemperature) {
        if (p.task_loss) p.task_loss[task] = R(loss * p.task_weight[task]);
        if (p.dtemperature) p.dtemperature[task] = dtemperature;
      });
}

template void proto_loss(const ProtoLoss<float>&);
template void proto_loss(const ProtoLoss<double>&);

}  // namespace fastmeta::FASTMETA_ISA
