// log p(y = n | x) = log_softmax_n(-d(x, c_n) / temperature). A thread owns a block of 16 queries, whose [N, 16]
// distances and exponentials stay in cache between the passes (see distance.h): 3 flops for each feature of each pair
// forward, 4 backward. Forward writes N log-probabilities a query, and N distances where backward will want them.
#include "distance/cpu/blocks.h"
#include "runtime/cpu/kernels.h"
#include "distance/cpu/softmax.h"

namespace fastmeta::FASTMETA_ISA {
template <class R>
void proto_log_softmax_fwd(const ProtoLogSoftmax<R>& p) {
  for_each_block(
      static_cast<const ProtoProblem<R>&>(p), p.log_probs.narrow(),
      [&](Block<R>& block, const Panels<R>&, R* room) {
        const int64_t row = (block.task * p.Q + block.first) * p.N;
        R* distances = block.distances;
        Softmax<R> s;
        block_softmax<R>(p.N, p.temperature, distances, nullptr, s);
        const R tau = R(p.temperature);
        for (int64_t n = 0; n < p.N; n++)
#pragma omp simd
          for (int q = 0; q < kBlock; q++) distances[n * kBlock + q] = (s.nearest[q] - distances[n * kBlock + q]) / tau - s.log_sum[q];
        R* log_probs = place(p.log_probs, row, room);
        store_rows(p.N, block.count, distances, log_probs);
        put(p.log_probs, row, block.count * p.N, log_probs);
      },
      [](int64_t, double, double) {});
}

template <class R>
void proto_log_softmax_bwd(const ProtoLogSoftmax<R>& p) {
  for_each_block(
      static_cast<const ProtoProblem<R>&>(p), 2,
      [&](Block<R>& block, const Panels<R>& panels, R* exps) {
        const int64_t row = (block.task * p.Q + block.first) * p.N;
        R* cotangents = exps + p.N * kBlock;
        transpose(block.count, p.N, read(p.dlog_probs, row, block.count * p.N, exps), p.N, cotangents, kBlock);
        Softmax<R> s;
        block_softmax<R>(p.N, p.temperature, block.distances, exps, s);
        R scale[kBlock];  // sum_n dlogp_n / sum_n e_n
        sum_classes(p.N, scale, [&](int64_t n, int q) __attribute__((always_inline)) { return cotangents[n * kBlock + q]; });
#pragma omp simd
        for (int q = 0; q < kBlock; q++) scale[q] /= s.sum[q];
        for (int64_t n = 0; n < p.N; n++)
#pragma omp simd
          for (int q = 0; q < kBlock; q++) exps[n * kBlock + q] = cotangents[n * kBlock + q] - exps[n * kBlock + q] * scale[q];
        block_coefficients<R>(p, panels, exps, s.nearest, nullptr, block);
      },
      [&](int64_t task, double, double dtemperature) {
        if (p.dtemperature) p.dtemperature[task] = dtemperature;
      });
}

template void proto_log_softmax_fwd(const ProtoLogSoftmax<float>&);
template void proto_log_softmax_fwd(const ProtoLogSoftmax<double>&);
template void proto_log_softmax_bwd(const ProtoLogSoftmax<float>&);
template void proto_log_softmax_bwd(const ProtoLogSoftmax<double>&);

}  // namespace fastmeta::FASTMETA_ISA
