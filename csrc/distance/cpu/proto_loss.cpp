// -log p(y = target | x) without the [Q, N] matrix. A thread owns a block of 16 queries: distances, losses, softmax and
// the coefficients of the gradients follow each other in [N, 16] arrays in cache (see distance.h), then the gradients.
// Forward and gradients: 7 flops for each feature of each pair, query and dquery in and out of memory once.
#include "distance/cpu/blocks.h"
#include "runtime/cpu/kernels.h"
#include "distance/cpu/softmax.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
bool is_class(const ProtoLoss<R>& p, int64_t target) {
  return target >= 0 && target < p.N && target != p.ignore_index;
}

// The block's losses; returns their sum.
template <class R>
double block_losses(const ProtoLoss<R>& p, int64_t query, int64_t count, const R* distances, const Softmax<R>& s) {
  double sum = 0;
  for (int64_t q = 0; q < count; q++) {
    const int64_t target = p.targets[query + q];
    R loss = target == p.ignore_index ? R(0) : R(__builtin_nan(""));
    if (is_class(p, target)) loss = (distances[target * kBlock + q] - s.nearest[q]) / R(p.temperature) + s.log_sum[q];
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
    const int64_t target = p.targets[query + q];
    if (target == p.ignore_index) continue;
    const R weight = p.task_weight ? R(p.task_weight[task]) : p.query_weight[query + q];
    weights[q] = is_class(p, target) ? weight : R(__builtin_nan(""));
  }
#pragma omp simd
  for (int q = 0; q < kBlock; q++) scale[q] = weights[q] / s.sum[q];
  for (int64_t n = 0; n < p.N; n++)
#pragma omp simd
    for (int q = 0; q < kBlock; q++) exps[n * kBlock + q] *= scale[q];
  for (int64_t q = 0; q < count; q++)
    if (is_class(p, p.targets[query + q])) exps[p.targets[query + q] * kBlock + q] -= weights[q];
}

}  // namespace

template <class R>
void proto_loss(const ProtoLoss<R>& p) {
  const bool gradients = p.dquery || p.dprototypes || p.dtemperature;
  for_each_block(
      static_cast<const ProtoProblem<R>&>(p), gradients ? 1 : 0,
      [&](Block<R>& block, const Panels<R>& panels, R* exps) {
        const int64_t query = block.task * p.Q + block.first;
        Softmax<R> s;
        block_softmax<R>(p.N, p.temperature, block.distances, gradients ? exps : nullptr, s);
        if (p.task_loss || p.query_loss) block.loss = block_losses(p, query, block.count, block.distances, s);
        if (!gradients) return;
        block_dlogits(p, block.task, query, block.count, s, exps);
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
