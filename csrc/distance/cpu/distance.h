// Distances of blocks of kBlock queries to N prototypes, and the gradients from their coefficients w, where
//   dquery_q = sum_n w_nq (q - c_n),   dprototypes_n = sum_q w_nq (c_n - q).
// A block's distances, and later its coefficients, are an [N, kBlock] array: one query per lane, so that softmax runs over
// whole vectors however few classes there are. Distances are sums of squared differences in register tiles (tiles.h), exact
// at any offset. The gradients are matrix products of what is left of both sides after the prototypes' mean m is taken off:
//   dquery_q = (sum_n w_nq) (q - m) - sum_n w_nq (c_n - m),
// which would lose digits where q and c_n are nearer to each other than to m: the coefficients of such pairs are taken out
// into a list, and these differences are added one by one. Long sums are sums of short ones.
#pragma once
#include "distance/proto.h"
#include "distance/cpu/tiles.h"

namespace fastmeta::FASTMETA_ISA {

// Measured on an AMD EPYC with AVX-512, 2 cores, 2026-11-24 (kFew, kLongRow: 2026-11-26): errors decide sums' lengths and kNear, times the
// rest.
constexpr int64_t kChunk = 128;     // features that are summed before they join a distance
constexpr int64_t kRun = 64;        // prototypes that are summed before they join dquery
constexpr int64_t kGroup = 4;       // blocks that share each load of the prototypes
constexpr int64_t kSegment = 8;     // blocks whose queries are summed before they join dprototypes
constexpr int64_t kFew = 8;         // prototypes that are too few for the tiles of many
constexpr int64_t kLongRow = 2048;  // features that are summed, in kBlock sums, before they join a distance to few prototypes
constexpr int kNear = 4;            // pairs are near from |q - c|^2 < (|q - m|^2 + |c - m|^2) / kNear: at most 3 times the rounding
template <class R>                  // rows that few_squares takes at a time; NEON: so many that their sums stay in registers
constexpr int kFewRows = kVectorBytes == 16 && kRegisters == 32 ? kTileRows<R> : kFew + 1;
template <class R>
constexpr R kFarthest = sizeof(R) == 4 ? R(__FLT_MAX__) : R(__DBL_MAX__);  // the farthest that is finite

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
  const R* rows;               // [count, D], these; with "cosine" their unit vectors
  R* units;                    // [kBlock, D], where those are; null otherwise
  R inverse_norms[kBlock];     // 1 / |q|, with "cosine"
  R* distances;                // [N, kBlock], replaced by the coefficients
  R* sums;                     // [N], of the coefficients over the queries
  R* centred;                  // [chunks, kBlock, kBlock], the queries less m, features in columns
  R totals[kBlock];            // and over the prototypes
  R radius[kBlock];            // |q - m|^2
  Near<R>* near;               // in order of n
  int64_t near_count;
  double loss, dtemperature;
};

// The prototypes of a task; and as the gradients take them: less their mean, kBlock features in columns, zeros at the end.
template <class R>
struct Panels {
  const R* rows;     // [N, D]; with "cosine" unit vectors
  R* units;          // [N, D], where those are; null otherwise
  R* inverse_norms;  // [N], 1 / |c|, 0 for a zero vector; with "cosine"
  R* centre;         // [chunks, kBlock]
  R* values;         // [chunks, N, kBlock]
  R* radius;         // [N], |c - m|^2
};

template <class R>
FASTMETA_INLINE int64_t feature_chunks(const ProtoProblem<R>& p) {
  return (p.D + kBlock - 1) / kBlock;
}

// The leading chunks that gradients take kWide at a time, of few prototypes.
template <class R>
FASTMETA_INLINE int64_t wide_chunks(const ProtoProblem<R>& p) {
  return p.N <= kFew ? p.D / (kWide * kBlock) * kWide : 0;
}

template <class R>
void make_panels(const ProtoProblem<R>& p, const Panels<R>& panels, int64_t begin, int64_t end) {
  for (int64_t chunk = begin; chunk < end; chunk++) {
    const int64_t d = chunk * kBlock, width = least(kBlock, p.D - d);
    Columns<R> sum = {}, x;
    for (int64_t n = 0; n < p.N; n++) {
      load_columns(panels.rows + n * p.D + d, width, x);
      for (int part = 0; part < kParts<R>; part++) sum[part] += x[part];
    }
    for (int part = 0; part < kParts<R>; part++) {
      const Vector<R> mean = sum[part] / R(p.N), zero = {};
      sum[part] = mean - mean == zero ? mean : zero;  // any finite centre will do: an infinite one would spoil what is not near it
    }
    store_columns(panels.centre + d, sum);
    for (int64_t n = 0; n < p.N; n++) {
      load_columns(panels.rows + n * p.D + d, width, x);
      for (int part = 0; part < kParts<R>; part++) x[part] -= sum[part];
      store_columns(panels.values + (chunk * p.N + n) * kBlock, x);
    }
  }
}

// The sum of D terms: whole(d) is a vector of them, single(d) one.
template <class R, class Whole, class Single>
FASTMETA_INLINE R sum_of_row(int64_t D, Whole&& whole, Single&& single) {
  Vector<R> sum[4] = {};
  int64_t d = 0;
  for (; d + 4 * kLanes<R> <= D; d += 4 * kLanes<R>)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) sum[i] += whole(d + i * kLanes<R>);
  for (; d + kLanes<R> <= D; d += kLanes<R>) sum[0] += whole(d);
  R total = sum_lanes<R>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; d < D; d++) total += single(d);
  return total;
}

// |x - centre|^2, good to the few digits that the choice of near pairs wants; centre [chunks, kBlock].
template <class R>
R radius_of(const R* x, const R* centre, int64_t D) {
  const auto square = [](auto difference) __attribute__((always_inline)) { return difference * difference; };
  return sum_of_row<R>(
      D, [&](int64_t d) __attribute__((always_inline)) { return square(load(x + d) - load(centre + d)); },
      [&](int64_t d) __attribute__((always_inline)) { return square(x[d] - centre[d]); });
}

// squares[m] = |x - rows[m]|^2, of D features.
template <int M, class R>
FASTMETA_INLINE void row_squares(const R* x, const R* const (&rows)[M], int64_t D, R (&squares)[M]) {
  for (int m = 0; m < M; m++) squares[m] = 0;
  for (int64_t begin = 0; begin < D; begin += kLongRow) {
    Columns<R> sum[M] = {};
    const auto add = [&](int64_t d, int64_t width) __attribute__((always_inline)) {
      Columns<R> features, row;
      load_columns(x + d, width, features);
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) {
        load_columns(rows[m] + d, width, row);
#pragma GCC unroll 8
        for (int part = 0; part < kParts<R>; part++) {
          const Vector<R> difference = features[part] - row[part];
          sum[m][part] += difference * difference;
        }
      }
    };
    const int64_t end = least(D, begin + kLongRow);
    int64_t d = begin;
    for (; d + kBlock <= end; d += kBlock) add(d, kBlock);
    if (d < end) add(d, end - d);
    Vector<R> joined[M];
    R found[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      joined[m] = sum[m][0];
#pragma GCC unroll 8
      for (int part = 1; part < kParts<R>; part++) joined[m] += sum[m][part];
    }
    sum_each<R, M>(joined, found);
    for (int m = 0; m < M; m++) squares[m] += found[m];
  }
}

// Squared distances of a block to few prototypes along the rows as they lie, and for gradients |q - m|^2 on the way.
template <class R>
inline void few_squares(const ProtoProblem<R>& p, const Panels<R>& panels, Block<R>& block) {
  const bool gradients = p.dquery || p.dprototypes;
  for_each_part<kFewRows<R>>(0, p.N + gradients, [&](auto count, int64_t first) __attribute__((always_inline)) {
    constexpr int M = decltype(count)::value;
    const R* rows[M];
    for (int m = 0; m < M; m++) rows[m] = first + m < p.N ? panels.rows + (first + m) * p.D : panels.centre;
    R squares[M] = {};
    for (int64_t q = 0; q < block.count; q++) {
      row_squares<M>(block.rows + q * p.D, rows, p.D, squares);
      for (int64_t n = first; n < least(p.N, first + M); n++) block.distances[n * kBlock + q] = squares[n - first];
      block.radius[q] = squares[M - 1];
    }
  });
}

// Squared distances of `count` blocks of a task; `columns` has room for [count, kChunk, kBlock].
template <class R>
inline void block_squares(const ProtoProblem<R>& p, const Panels<R>& panels, Block<R>* blocks, int64_t count, R* columns) {
  for (int64_t d = 0; d < p.D; d += kChunk) {
    const int64_t width = least(kChunk, p.D - d);
    for (int64_t b = 0; b < count; b++) transpose(blocks[b].count, width, blocks[b].rows + d, p.D, columns + b * kChunk * kBlock, kBlock);
    for_each_tile<R>(0, p.N, [&](auto rows, int64_t n) __attribute__((always_inline)) {
      for (int64_t b = 0; b < count; b++)
        tile_squares<R, decltype(rows)::value>(width, columns + b * kChunk * kBlock, panels.rows + n * p.D + d, p.D,
                                               blocks[b].distances + n * kBlock, d > 0);
    });
  }
}

// Lanes beyond the block's queries: finite, and near to nothing.
template <class R>
inline void fill_lanes(const ProtoProblem<R>& p, Block<R>& block) {
  for (int64_t n = 0; n < p.N && block.count < kBlock; n++)
    for (int64_t q = block.count; q < kBlock; q++) block.distances[n * kBlock + q] = kFarthest<R>;
  for (int64_t q = block.count; q < kBlock; q++) block.radius[q] = 0;
}

template <class R>
void block_distances(const ProtoProblem<R>& p, const Panels<R>& panels, Block<R>* blocks, int64_t count, R* columns) {
  const int64_t pairs = p.N * kBlock;
  if (p.N > kFew && p.D > 0) block_squares(p, panels, blocks, count, columns);
  for (int64_t b = 0; b < count; b++) {
    R* distances = blocks[b].distances;
    if (p.N <= kFew) few_squares(p, panels, blocks[b]);
    else if (p.D == 0) std::memset(distances, 0, size_t(pairs) * sizeof(R));
    fill_lanes(p, blocks[b]);
    if (p.metric == Metric::euclidean)
#pragma omp simd
      for (int64_t i = 0; i < pairs; i++) distances[i] = square_root(distances[i]);
    if (p.metric != Metric::cosine) continue;
    // 1 - cos = |q - c|^2 / 2 of unit vectors; cos = 0 to a zero vector
    for (int64_t n = 0; n < p.N; n++) {
      const R zero = panels.inverse_norms[n] == 0 ? R(0.5) : R(0);
#pragma omp simd
      for (int q = 0; q < kBlock; q++) distances[n * kBlock + q] = R(0.5) * distances[n * kBlock + q] + zero;
    }
  }
}

}  // namespace fastmeta::FASTMETA_ISA
