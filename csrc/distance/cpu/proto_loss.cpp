// -log p(y = target | x) without the [Q, N] matrix. A thread owns a block of 16 queries: distances, losses, softmax and
// the coefficients of the gradients follow each other in [N, 16] arrays in cache (see distance.h), then the gradients.
// Forward and gradients: 7 flops for each feature of each pair, query and dquery in and out of memory once.
#include "distance/cpu/blocks.h"
#include "distance/cpu/both_sides.h"
#include "distance/cpu/positives.h"
#include "distance/cpu/soft_targets.h"
#include "runtime/cpu/kernels.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
struct Found {  // of a block
  Softmax<R> all;
  Positives<R> same;  // with classes
  SoftTargets<R> soft;
  bool counts[kBlock];   // whether the query has a target that counts
  R farther[kBlock];     // with smoothing: the mean of distances less the nearest, of those that count
  int64_t most[kBlock];  // how many do
};

template <class R>
void find_mean(const ProtoLoss<R>& p, int64_t query, const Block<R>& block, Found<R>& found) {
  R total[kBlock];
  int64_t out[kBlock];
  for (int64_t q = 0; q < kBlock; q++) {
    out[q] = q < block.count ? excluded_of(p, query + q) : -1;
    found.most[q] = p.N - (out[q] >= 0);
  }
  sum_classes(p.N, total, [&](int64_t n, int q) __attribute__((always_inline)) {
    return n == out[q] ? R(0) : block.distances[n * kBlock + q] - found.all.nearest[q];
  });
  for (int q = 0; q < kBlock; q++) found.farther[q] = total[q] / R(found.most[q]);
}

// Of a query whose targets count, before smoothing.
template <class R>
R own_loss(const ProtoLoss<R>& p, const Block<R>& block, const Found<R>& found, int64_t target, int64_t q) {
  const Softmax<R>& s = found.all;
  if (found.soft.shares) return found.soft.farther[q] / R(p.temperature) + found.soft.total[q] * s.log_sum[q];
  const R distance = p.classes ? found.same.nearest[q] : block.distances[target * kBlock + q];
  return (distance - s.nearest[q]) / R(p.temperature) + R(p.margin) + s.log_sum[q] - (p.classes ? found.same.log_sum[q] : R(0));
}

// The block's losses; returns their sum.
template <class R>
double block_losses(const ProtoLoss<R>& p, int64_t query, const Block<R>& block, Found<R>& found, R* losses) {
  const Softmax<R>& s = found.all;
  double sum = 0;
  for (int64_t q = 0; q < block.count; q++) {
    const int64_t target = class_of(p, query + q);
    const bool ignored = ignores(p, query + q);
    found.counts[q] = p.classes ? found.same.nearest[q] < R(__builtin_inf()) : found.soft.shares ? !found.soft.of_excluded[q] : target >= 0;
    R loss = ignored ? R(0) : R(__builtin_nan(""));
    if (found.counts[q] && !ignored) {
      loss = own_loss(p, block, found, target, q);
      if (p.smoothing != 0) {
        const R of_all = found.farther[q] / R(p.temperature) + R(p.margin) / R(found.most[q]) + s.log_sum[q];
        loss = R(1 - p.smoothing) * loss + R(p.smoothing) * of_all;
      }
    }
    losses[q] = loss;
    if (p.query_loss) p.query_loss[query + q] = loss;
    sum += double(loss);
  }
  return sum;
}

// Whether the first of the largest logits is the target's; 0 where the loss is NaN.
template <class R>
void block_hits(const ProtoLoss<R>& p, int64_t query, const Block<R>& block, const SoftTargets<R>& soft, const R* losses) {
  R nearest[kBlock];
  int32_t first[kBlock];
  for (int q = 0; q < kBlock; q++) nearest[q] = R(__builtin_inf()), first[q] = -1;
  for (int64_t n = 0; n < p.N; n++)
    for (int q = 0; q < kBlock; q++) {
      const R distance = block.distances[n * kBlock + q];
      first[q] = distance < nearest[q] ? int32_t(n) : first[q];
      nearest[q] = distance < nearest[q] ? distance : nearest[q];
    }
  const int64_t* classes = of_task(p, block.task, p.classes);
  for (int64_t q = 0; q < block.count; q++) {
    const int64_t target = p.targets ? p.targets[query + q] : largest_share(soft, p.N, q);
    const int64_t found = first[q] < 0 || !classes ? first[q] : classes[first[q]];
    p.hits[query + q] = first[q] >= 0 && !ignores(p, query + q) && losses[q] == losses[q] && found == target;
  }
}

// dz = weight (softmax - one_hot), in place of the exponentials, or with shares in place of one_hot; NaN for a target out of range.
template <class R>
void block_dlogits(const ProtoLoss<R>& p, int64_t query, Block<R>& block, const Found<R>& found, R* exps, R* taken) {
  R weights[kBlock] = {}, scale[kBlock], all[kBlock], own[kBlock] = {};
  for (int64_t q = 0; q < block.count; q++) {
    if (ignores(p, query + q)) continue;
    const R weight = p.task_weight ? R(p.task_weight[block.task]) : p.query_weight[query + q];
    weights[q] = found.counts[q] ? weight : R(__builtin_nan(""));
    own[q] = R(1 - p.smoothing) * weights[q];
  }
  const SoftTargets<R>& soft = found.soft;
#pragma omp simd
  for (int q = 0; q < kBlock; q++) scale[q] = weights[q] / found.all.sum[q];
  for (int q = 0; soft.shares && q < kBlock; q++) scale[q] *= R(1 - p.smoothing) * soft.total[q] + R(p.smoothing);
  for (int64_t n = 0; n < p.N; n++)
#pragma omp simd
    for (int q = 0; q < kBlock; q++) exps[n * kBlock + q] *= scale[q];
  if (p.classes) add_positives(p, block, found.same, own, exps);
  for (int64_t n = 0; soft.shares && n < p.N; n++)
#pragma omp simd
    for (int q = 0; q < kBlock; q++) exps[n * kBlock + q] -= own[q] * soft.shares[n * kBlock + q];
  if (p.dsoft_targets) put_dshares(p, block, found.all, own, soft);
  for (int64_t q = 0; q < block.count; q++)
    if (const int64_t target = class_of(p, query + q); target >= 0) exps[target * kBlock + q] -= own[q];
  if (p.others_nearest) add_other_side(p, block, found.all, weights, exps, taken);
  if (p.smoothing == 0) return;
  for (int q = 0; q < kBlock; q++) all[q] = weights[q] * R(p.smoothing) / R(found.most[q]);
  for (int64_t n = 0; n < p.N; n++)
#pragma omp simd
    for (int q = 0; q < kBlock; q++) exps[n * kBlock + q] -= all[q];
  for (int64_t q = 0; q < block.count; q++)
    if (const int64_t n = excluded_of(p, query + q); n >= 0) exps[n * kBlock + q] += all[q];
}

template <class R>
void sum_columns(int64_t N, const R* dz, R* sums) {
  for (int64_t n = 0; n < N; n++) {
    sums[n] = 0;
    for (int q = 0; q < kBlock; q++) sums[n] += dz[n * kBlock + q];
  }
}

}  // namespace

template <class R>
void proto_loss(const ProtoLoss<R>& p) {
  const bool gradients = p.dquery || p.dprototypes || p.dtemperature || p.dtarget_distance || p.column_sums || p.dsoft_targets;
  const bool raw = gradients && p.bias, soft = bool(p.soft_targets);
  for_each_block(
      static_cast<const ProtoProblem<R>&>(p), gradients + raw + 2 * soft,
      [&](Block<R>& block, const Panels<R>& panels, R* scratch) {
        const int64_t query = block.task * p.Q + block.first, size = p.N * kBlock;
        R *exps = gradients ? scratch : nullptr, *shares = soft ? scratch + (gradients + raw) * size : nullptr;
        Replaced<R> replaced(p, query, block, raw ? scratch + size : nullptr);
        Found<R> found;
        R losses[kBlock], taken[kBlock];
        if (p.nearest || p.others_nearest) complete_distances(p, panels, block);
        found.soft.shares = shares, found.soft.room = soft ? shares + size : nullptr;
        block_softmax<R>(p.N, p.temperature, block.distances, exps, found.all);
        replaced.refine(found.all, exps);
        if (p.nearest) leave_sums(p, block, found.all);
        if (p.classes) find_positives(p, block, found.same);
        if (soft) find_shares(p, block, found.all, found.soft);
        if (p.smoothing != 0) find_mean(p, query, block, found);
        block.loss = block_losses(p, query, block, found, losses);
        if (p.hits) block_hits(p, query, block, found.soft, losses);
        if (!gradients) return;
        block_dlogits(p, query, block, found, exps, taken);
        if (p.column_sums) sum_columns(p.N, exps, block.dlogit_sums);
        replaced.undo(found.all, exps);
        block_coefficients<R>(p, panels, exps, found.all.nearest, p.others_nearest ? taken : replaced.taken(), block);
      },
      [&](int64_t task, double loss, double dtemperature) {
        if (p.task_loss) p.task_loss[task] = R(loss * p.task_weight[task]);
        if (p.dtemperature) p.dtemperature[task] = dtemperature;
      });
}

template void proto_loss(const ProtoLoss<float>&);
template void proto_loss(const ProtoLoss<double>&);

}  // namespace fastmeta::FASTMETA_ISA
