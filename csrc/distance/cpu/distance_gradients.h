// The gradients of blocks of queries, from the coefficients that stand in place of the distances: see distance.h.
#pragma once
#include "distance/cpu/distance.h"

namespace fastmeta::FASTMETA_ISA {

// dquery of the chunks [begin, end), W at a time; prototypes [n, n + kRun).
template <int W, class R>
FASTMETA_INLINE void dquery_columns(const ProtoProblem<R>& p, const Panels<R>& panels, const Block<R>& block, int64_t n, int64_t begin,
                                    int64_t end) {
  for_each_part<W == 1 ? kTileRows<R> : kWideRows<R>>(0, block.count, [&](auto rows, int64_t q) __attribute__((always_inline)) {
    constexpr int K = decltype(rows)::value;
    for (int64_t chunk = begin; chunk < end; chunk += W) {
      Columns<R> sum[K][W] = {}, x, centre;
      tile_products<R, K, W>(least(kRun, p.N - n), block.distances + n * kBlock + q, kBlock, 1, panels.values + (chunk * p.N + n) * kBlock,
                             kBlock, p.N * kBlock, sum);
#pragma GCC unroll 4
      for (int w = 0; w < W; w++) {
        const int64_t d = (chunk + w) * kBlock, width = least(kBlock, p.D - d);
        load_columns(panels.centre + d, centre);
#pragma GCC unroll 16
        for (int k = 0; k < K; k++) {
          R* out = block.dquery + (q + k) * p.D + d;
          load_columns(n ? out : block.rows + (q + k) * p.D + d, W == 1 ? width : kBlock, x);
#pragma GCC unroll 8
          for (int part = 0; part < kParts<R>; part++) sum[k][w][part] += n ? x[part] : block.totals[q + k] * (x[part] - centre[part]);
          store_columns(out, W == 1 ? width : kBlock, sum[k][w]);
        }
      }
    }
  });
}

// dquery of `count` blocks of a task.
template <class R>
void block_dquery(const ProtoProblem<R>& p, const Panels<R>& panels, const Block<R>* blocks, int64_t count) {
  const int64_t wide = wide_chunks(p);
  for (int64_t n = 0; n < p.N; n += kRun)
    for (int64_t b = 0; b < count; b++) {
      dquery_columns<kWide>(p, panels, blocks[b], n, 0, wide);
      dquery_columns<1>(p, panels, blocks[b], n, wide, feature_chunks(p));
    }
  for (int64_t b = 0; b < count; b++)
    for (int64_t i = 0; i < blocks[b].near_count; i++) {
      const Near<R> pair = blocks[b].near[i];
      const R *x = blocks[b].rows + pair.q * p.D, *c = panels.rows + pair.n * p.D;
      R* out = blocks[b].dquery + pair.q * p.D;
#pragma omp simd
      for (int64_t d = 0; d < p.D; d++) out[d] += pair.coefficient * (x[d] - c[d]);
    }
}

// Whether dprototypes is one tile high, so that it reads each query once, where that is.
template <class R>
FASTMETA_INLINE bool one_tile(const ProtoProblem<R>& p) {
  return p.N <= kTileRows<R> && p.D % kBlock == 0;
}

template <class R>
void centre_queries(const ProtoProblem<R>& p, const Panels<R>& panels, const Block<R>& block) {
  for (int64_t q = 0; q < block.count; q++)
    for (int64_t chunk = wide_chunks(p); chunk < feature_chunks(p); chunk++) {
      Columns<R> x, centre;
      load_columns(block.rows + q * p.D + chunk * kBlock, least(kBlock, p.D - chunk * kBlock), x);
      load_columns(panels.centre + chunk * kBlock, centre);
      for (int part = 0; part < kParts<R>; part++) x[part] -= centre[part];
      store_columns(block.centred + (chunk * kBlock + q) * kBlock, x);
    }
}

// dprototypes [begin, end) of the chunks [chunk, chunk + W), see block_dprototypes.
template <int W, class R>
FASTMETA_INLINE void dprototypes_columns(const ProtoProblem<R>& p, const Panels<R>& panels, const Block<R>* blocks, int64_t count,
                                         int64_t begin, int64_t end, int64_t chunk, bool add) {
  const int64_t d = chunk * kBlock, width = W == 1 ? least(kBlock, p.D - d) : kBlock;
  R* dprototypes = panels.dprototypes + d;
  const bool direct = W > 1 || one_tile(p);
  Columns<R> centre[W];
#pragma GCC unroll 4
  for (int w = 0; w < W; w++) load_columns(panels.centre + d + w * kBlock, centre[w]);
  for_each_part<W == 1 ? kTileRows<R> : kWideRows<R>>(begin, end, [&](auto rows, int64_t n) __attribute__((always_inline)) {
    constexpr int K = decltype(rows)::value;
    Columns<R> sum[K][W], total = {};
#pragma GCC unroll 16
    for (int k = 0; k < K; k++) {
      R weight = 0;
      for (int64_t b = 0; b < count; b++) weight += blocks[b].sums[n + k];
#pragma GCC unroll 4
      for (int w = 0; w < W; w++) {
        load_columns(panels.values + ((chunk + w) * p.N + n + k) * kBlock, sum[k][w]);
#pragma GCC unroll 8
        for (int part = 0; part < kParts<R>; part++) sum[k][w][part] *= weight;
      }
    }
    for (int64_t b = 0; b < count; b++) {
      const R* coefficients = blocks[b].distances + n * kBlock;
      if (direct) tile_products<R, K, W>(blocks[b].count, coefficients, 1, kBlock, blocks[b].rows + d, p.D, kBlock, sum, centre);
      else tile_products<R, K, W>(blocks[b].count, coefficients, 1, kBlock, blocks[b].centred + chunk * kBlock * kBlock, kBlock, 0, sum);
    }
#pragma GCC unroll 16
    for (int k = 0; k < K; k++)
#pragma GCC unroll 4
      for (int w = 0; w < W; w++) {
        R* out = dprototypes + (n + k) * p.D + w * kBlock;
        if (add) load_columns(out, width, total);
#pragma GCC unroll 8
        for (int part = 0; part < kParts<R>; part++) sum[k][w][part] += total[part];
        store_columns(out, width, sum[k][w]);
      }
  });
}

// The part of a segment, `count` blocks of a task, in dprototypes [begin, end) and the features of the chunks [chunk, last), all
// wide ones or none.
template <class R>
void block_dprototypes(const ProtoProblem<R>& p, const Panels<R>& panels, const Block<R>* blocks, int64_t count, int64_t begin, int64_t end,
                       int64_t chunk, int64_t last, bool add) {
  const int64_t d = chunk * kBlock, width = least(last * kBlock, p.D) - d;
  if (last <= wide_chunks(p)) {
    dprototypes_columns<kWide>(p, panels, blocks, count, begin, end, chunk, add);
  } else {
    dprototypes_columns<1>(p, panels, blocks, count, begin, end, chunk, add);
  }
  R* dprototypes = panels.dprototypes + d;
  for (int64_t b = 0; b < count; b++) {
    const Near<R>* pair = blocks[b].near;
    const Near<R>* last_pair = pair + blocks[b].near_count;
    for (; pair < last_pair && pair->n < begin;) pair++;
    for (; pair < last_pair && pair->n < end; pair++) {
      const R *x = blocks[b].rows + pair->q * p.D + d, *c = panels.rows + pair->n * p.D + d;
#pragma omp simd
      for (int64_t i = 0; i < width; i++) dprototypes[pair->n * p.D + i] += pair->coefficient * (c[i] - x[i]);
    }
  }
}

}  // namespace fastmeta::FASTMETA_ISA
