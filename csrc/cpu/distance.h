// Distances of blocks of kBlock queries to N prototypes, and the gradients from their coefficients w, where
//   dquery_q = sum_n w_nq (q - c_n),   dprototypes_n = sum_q w_nq (c_n - q).
// A block's distances, and later its coefficients, are an [N, kBlock] array: one query per lane, so that softmax runs over
// whole vectors however few classes there are. Distances are sums of squared differences in register tiles (tiles.h), exact
// at any offset. The gradients are matrix products of what is left of both sides after the prototypes' mean m is taken off:
//   dquery_q = (sum_n w_nq) (q - m) - sum_n w_nq (c_n - m),
// which would lose digits where q and c_n are nearer to each other than to m: the coefficients of such pairs are taken out
// into a list, and these differences are added one by one. Long sums are sums of short ones.
#pragma once
#include "../proto.h"
#include "tiles.h"

namespace fastmeta::FASTMETA_ISA {

constexpr int64_t kChunk = 128;  // features that are summed before they join a distance
constexpr int64_t kRun = 64;     // prototypes that are summed before they join dquery
constexpr int64_t kGroup = 4;    // blocks that share each load of the prototypes
constexpr int64_t kSegment = 8;  // blocks whose queries are summed before they join dprototypes
constexpr int kNear = 4;         // pairs are near from |q - c|^2 < (|q - m|^2 + |c - m|^2) / kNear: at most 3 times the rounding

FASTMETA_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
FASTMETA_INLINE double square_root(double x) { return __builtin_sqrt(x); }

template <class R>
struct Near {
  int32_t n, q;
  R coefficient;
};

template <class R>
struct Block {
  int64_t task, first, count;  // its queries
  R* distances;                // [N, kBlock], replaced by the coefficients
  R* sums;                     // [N], of the coefficients over the queries
  R* centred;                  // [chunks, kBlock, kBlock], the queries less m, features in columns
  R totals[kBlock];            // and over the prototypes
  R radius[kBlock];            // |q - m|^2
  Near<R>* near;               // in order of n
  int64_t near_count;
  double loss, dtemperature;
};

// The prototypes of a task as the gradients take them: less their mean, kBlock features in columns, zeros at the end.
template <class R>
struct Panels {
  R* centre;  // [chunks, kBlock]
  R* values;  // [chunks, N, kBlock]
  R* radius;  // [N], |c - m|^2
};

template <class R>
FASTMETA_INLINE int64_t feature_chunks(const ProtoProblem<R>& p) {
  return (p.D + kBlock - 1) / kBlock;
}

template <class R>
inline void make_panels(const ProtoProblem<R>& p, int64_t task, const Panels<R>& panels, int64_t begin, int64_t end) {
  const R* prototypes = p.prototypes + task * p.prototypes_stride;
  for (int64_t chunk = begin; chunk < end; chunk++) {
    const int64_t d = chunk * kBlock, width = least(kBlock, p.D - d);
    Columns<R> sum = {}, x;
    for (int64_t n = 0; n < p.N; n++) {
      load_columns(prototypes + n * p.D + d, width, x);
      for (int part = 0; part < kParts<R>; part++) sum[part] += x[part];
    }
    for (int part = 0; part < kParts<R>; part++) sum[part] /= R(p.N);
    store_columns(panels.centre + d, sum);
    for (int64_t n = 0; n < p.N; n++) {
      load_columns(prototypes + n * p.D + d, width, x);
      for (int part = 0; part < kParts<R>; part++) x[part] -= sum[part];
      store_columns(panels.values + (chunk * p.N + n) * kBlock, x);
    }
  }
}

// |x - centre|^2, good to the few digits that the choice of near pairs wants; centre [chunks, kBlock].
template <class R>
inline R radius_of(const R* x, const R* centre, int64_t D) {
  Vector<R> sum[4] = {};
  int64_t d = 0;
  for (; d + 4 * kLanes<R> <= D; d += 4 * kLanes<R>)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const Vector<R> difference = load(x + d + i * kLanes<R>) - load(centre + d + i * kLanes<R>);
      sum[i] += difference * difference;
    }
  R total = sum_lanes<R>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; d < D; d++) total += (x[d] - centre[d]) * (x[d] - centre[d]);
  return total;
}

// Squared distances of `count` blocks of a task; `columns` has room for [count, kChunk, kBlock].
template <class R>
inline void block_squares(const ProtoProblem<R>& p, Block<R>* blocks, int64_t count, R* columns) {
  const int64_t task = blocks[0].task;
  const R *query = p.query + task * p.Q * p.D, *prototypes = p.prototypes + task * p.prototypes_stride;
  for (int64_t d = 0; d < p.D; d += kChunk) {
    const int64_t width = least(kChunk, p.D - d);
    for (int64_t b = 0; b < count; b++)
      transpose(blocks[b].count, width, query + blocks[b].first * p.D + d, p.D, columns + b * kChunk * kBlock, kBlock);
    for_each_tile<R>(0, p.N, [&](auto rows, int64_t n) __attribute__((always_inline)) {
      for (int64_t b = 0; b < count; b++)
        tile_squares<R, decltype(rows)::value>(width, columns + b * kChunk * kBlock, prototypes + n * p.D + d, p.D,
                                               blocks[b].distances + n * kBlock, d > 0);
    });
  }
}

template <class R>
inline void block_distances(const ProtoProblem<R>& p, Block<R>* blocks, int64_t count, R* columns) {
  const int64_t pairs = p.N * kBlock;
  if (p.D > 0) block_squares(p, blocks, count, columns);
  for (int64_t b = 0; b < count; b++) {
    R* distances = blocks[b].distances;
    if (p.D == 0) std::memset(distances, 0, size_t(pairs) * sizeof(R));
    if (p.metric == Metric::euclidean)
#pragma omp simd
      for (int64_t i = 0; i < pairs; i++) distances[i] = square_root(distances[i]);
    if (p.metric != Metric::cosine) continue;
    // 1 - cos = |q - c|^2 / 2 of unit vectors; cos = 0 to a zero vector
    const R* inverse_norms = p.inverse_norms + blocks[b].task * (p.prototypes_stride ? p.N : 0);
    for (int64_t n = 0; n < p.N; n++) {
      const R zero = inverse_norms[n] == 0 ? R(0.5) : R(0);
#pragma omp simd
      for (int q = 0; q < kBlock; q++) distances[n * kBlock + q] = R(0.5) * distances[n * kBlock + q] + zero;
    }
  }
}

// dquery of `count` blocks of a task.
template <class R>
inline void block_dquery(const ProtoProblem<R>& p, const Panels<R>& panels, const Block<R>* blocks, int64_t count) {
  const int64_t task = blocks[0].task;
  const R *query = p.query + task * p.Q * p.D, *prototypes = p.prototypes + task * p.prototypes_stride;
  R* dquery = p.dquery + task * p.Q * p.D;
  for (int64_t n = 0; n < p.N; n += kRun)
    for (int64_t b = 0; b < count; b++)
      for_each_tile<R>(0, blocks[b].count, [&](auto rows, int64_t q) __attribute__((always_inline)) {
        constexpr int K = decltype(rows)::value;
        for (int64_t chunk = 0; chunk < feature_chunks(p); chunk++) {
          const int64_t d = chunk * kBlock, width = least(kBlock, p.D - d), row = (blocks[b].first + q) * p.D + d;
          Columns<R> sum[K] = {}, x, centre;
          tile_products<R, K>(least(kRun, p.N - n), blocks[b].distances + n * kBlock + q, kBlock, 1,
                              panels.values + (chunk * p.N + n) * kBlock, kBlock, sum);
          load_columns(panels.centre + d, centre);
#pragma GCC unroll 16
          for (int k = 0; k < K; k++) {
            load_columns((n ? dquery : query) + row + k * p.D, width, x);
#pragma GCC unroll 8
            for (int part = 0; part < kParts<R>; part++)
              sum[k][part] += n ? x[part] : blocks[b].totals[q + k] * (x[part] - centre[part]);
            store_columns(dquery + row + k * p.D, width, sum[k]);
          }
        }
      });
  for (int64_t b = 0; b < count; b++)
    for (int64_t i = 0; i < blocks[b].near_count; i++) {
      const Near<R> pair = blocks[b].near[i];
      const R *x = query + (blocks[b].first + pair.q) * p.D, *c = prototypes + pair.n * p.D;
      R* out = dquery + (blocks[b].first + pair.q) * p.D;
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
inline void centre_queries(const ProtoProblem<R>& p, const Panels<R>& panels, const Block<R>& block) {
  const R* query = p.query + (block.task * p.Q + block.first) * p.D;
  for (int64_t q = 0; q < block.count; q++)
    for (int64_t chunk = 0; chunk < feature_chunks(p); chunk++) {
      Columns<R> x, centre;
      load_columns(query + q * p.D + chunk * kBlock, least(kBlock, p.D - chunk * kBlock), x);
      load_columns(panels.centre + chunk * kBlock, centre);
      for (int part = 0; part < kParts<R>; part++) x[part] -= centre[part];
      store_columns(block.centred + (chunk * kBlock + q) * kBlock, x);
    }
}

// The part of a segment, `count` blocks of a task, in dprototypes [begin, end) and the features of one chunk.
template <class R>
inline void block_dprototypes(const ProtoProblem<R>& p, const Panels<R>& panels, const Block<R>* blocks, int64_t count,
                              int64_t begin, int64_t end, int64_t chunk, bool add) {
  const int64_t task = blocks[0].task, d = chunk * kBlock, width = least(kBlock, p.D - d);
  const R *query = p.query + task * p.Q * p.D + d, *prototypes = p.prototypes + task * p.prototypes_stride + d;
  R* dprototypes = p.dprototypes + task * p.N * p.D + d;
  const bool direct = one_tile(p);
  Columns<R> centre;
  load_columns(panels.centre + d, centre);
  for_each_tile<R>(begin, end, [&](auto rows, int64_t n) __attribute__((always_inline)) {
    constexpr int K = decltype(rows)::value;
    Columns<R> sum[K], total = {};
#pragma GCC unroll 16
    for (int k = 0; k < K; k++) {
      R weight = 0;
      for (int64_t b = 0; b < count; b++) weight += blocks[b].sums[n + k];
      load_columns(panels.values + (chunk * p.N + n + k) * kBlock, sum[k]);
#pragma GCC unroll 8
      for (int part = 0; part < kParts<R>; part++) sum[k][part] *= weight;
    }
    for (int64_t b = 0; b < count; b++) {
      const R* coefficients = blocks[b].distances + n * kBlock;
      if (direct)
        tile_products<R, K>(blocks[b].count, coefficients, 1, kBlock, query + blocks[b].first * p.D, p.D, sum, &centre);
      else
        tile_products<R, K>(blocks[b].count, coefficients, 1, kBlock, blocks[b].centred + chunk * kBlock * kBlock, kBlock, sum);
    }
#pragma GCC unroll 16
    for (int k = 0; k < K; k++) {
      R* out = dprototypes + (n + k) * p.D;
      if (add) load_columns(out, width, total);
#pragma GCC unroll 8
      for (int part = 0; part < kParts<R>; part++) sum[k][part] += total[part];
      store_columns(out, width, sum[k]);
    }
  });
  for (int64_t b = 0; b < count; b++) {
    const Near<R>* pair = blocks[b].near;
    const Near<R>* last = pair + blocks[b].near_count;
    for (; pair < last && pair->n < begin;) pair++;
    for (; pair < last && pair->n < end; pair++) {
      const R *x = query + (blocks[b].first + pair->q) * p.D, *c = prototypes + pair->n * p.D;
#pragma omp simd
      for (int64_t i = 0; i < width; i++) dprototypes[pair->n * p.D + i] += pair->coefficient * (c[i] - x[i]);
    }
  }
}

}  // namespace fastmeta::FASTMETA_ISA
