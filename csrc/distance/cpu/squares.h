// The distances of blocks: see distance.h.
// What products lose: with x = q - m, y = c - m and s = |q - c|^2 = |x|^2 + |y|^2 - 2 x.y, a pair stays where
// |x|^2 + |y|^2 <= k s, k = kCancelled.
//   2 x.y      its partial sums end at |x|^2 + |y|^2 - s <= (k - 1) s, where those of squared differences end at s: for k = 2 the
//              roundings on the way are no larger. The bound for any signs is k times theirs.
//   |x|^2      in kRowSum / lanes terms at a time, about a rounding: of all that are in |x|^2 + |y|^2, k roundings of s.
//   x, y       each feature rounded once: 2 (q - c) . (rounding of x and y), at most 2 sqrt(2 k) roundings of s, where one
//              feature carries all; over many features they average out.
// An infinite |x|^2 + |y|^2 leaves no NaN or infinity behind that differences do not have: such pairs do not stay.
#pragma once
#include "distance/cpu/distance.h"

namespace fastmeta::FASTMETA_ISA {

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

// -(q - m) . (c - m) of `count` blocks of a task; `columns` has room for [count, kChunk, kBlock].
template <class R>
inline void block_products(const ProtoProblem<R>& p, const Panels<R>& panels, Block<R>* blocks, int64_t count, R* columns) {
  for (int64_t d = 0; d < p.D; d += kChunk) {
    const int64_t width = least(kChunk, p.D - d);
    for (int64_t b = 0; b < count; b++) {
      R* x = columns + b * kChunk * kBlock;
      transpose(blocks[b].count, width, blocks[b].rows + d, p.D, x, kBlock);
      for (int64_t i = 0; i < width; i++)
#pragma omp simd
        for (int q = 0; q < kBlock; q++) x[i * kBlock + q] -= panels.centre[d + i];
    }
    for_each_tile<R>(0, p.N, [&](auto rows, int64_t n) __attribute__((always_inline)) {
      for (int64_t b = 0; b < count; b++)
        tile_dots<R, decltype(rows)::value>(width, columns + b * kChunk * kBlock, panels.values + d * p.N + n * kBlock, p.N * kBlock,
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

// The distance of a square; `zero`: what "cosine" adds, whose vectors are units: 1 - cos = |q - c|^2 / 2, and cos = 0 to a zero vector.
template <Metric metric, class R>
FASTMETA_INLINE R distance_of(R square, R zero) {
  return metric == Metric::euclidean ? square_root(square) : metric == Metric::cosine ? R(0.5) * square + zero : square;
}

template <Metric metric, class R>
FASTMETA_INLINE R zero_of(const Panels<R>& panels, int64_t n) {
  return metric == Metric::cosine && panels.inverse_norms[n] == 0 ? R(0.5) : R(0);
}

// Distances from these products; by differences where they cancel, or are not finite.
template <Metric metric, class R>
inline void distances_of_products(const ProtoProblem<R>& p, const Panels<R>& panels, Block<R>& block) {
  const R nan = R(__builtin_nan(""));
  std::memset(block.radius, 0, sizeof block.radius);
  find_radii(p, panels, block);
  for (int64_t n = 0; n < p.N; n++) {
    R* distances = block.distances + n * kBlock;
    const R radius = panels.radius[n], zero = zero_of<metric>(panels, n);
#pragma omp simd
    for (int q = 0; q < kBlock; q++) {
      const R whole = block.radius[q] + radius, square = whole + 2 * distances[q];
      distances[q] = distance_of<metric>(R(kCancelled) * square - whole >= 0 ? square : nan, zero);  // NaN where `whole` is infinite too
    }
    uint32_t lost = 0;
#pragma GCC unroll 8
    for (int part = 0; part < kParts<R>; part++) lost |= nan_lanes<R>(load(distances + part * kLanes<R>)) << part * kLanes<R>;
    for (lost &= (1u << block.count) - 1; lost; lost &= lost - 1) {
      const int q = __builtin_ctz(lost);
      distances[q] = distance_of<metric>(squared_distance(block.rows + q * p.D, panels.rows + n * p.D, p.D), zero);
    }
  }
}

// Distances in place of squares, or of products.
template <Metric metric, class R>
inline void find_distances(const ProtoProblem<R>& p, const Panels<R>& panels, Block<R>& block) {
  if (by_products(p)) distances_of_products<metric>(p, panels, block);
  fill_lanes(p, block);
  for (int64_t n = 0; n < p.N && !by_products(p) && metric != Metric::sqeuclidean; n++) {
    const R zero = zero_of<metric>(panels, n);
#pragma omp simd
    for (int q = 0; q < kBlock; q++) block.distances[n * kBlock + q] = distance_of<metric>(block.distances[n * kBlock + q], zero);
  }
}

template <class R>
void block_distances(const ProtoProblem<R>& p, const Panels<R>& panels, Block<R>* blocks, int64_t count, R* columns) {
  if (by_products(p)) block_products(p, panels, blocks, count, columns);
  else if (p.N > kFew) block_squares(p, panels, blocks, count, columns);
  for (int64_t b = 0; b < count; b++) {
    if (p.N <= kFew) few_squares(p, panels, blocks[b]);
    else if (p.D == 0) std::memset(blocks[b].distances, 0, size_t(p.N * kBlock) * sizeof(R));
    if (p.metric == Metric::euclidean) find_distances<Metric::euclidean>(p, panels, blocks[b]);
    if (p.metric == Metric::sqeuclidean) find_distances<Metric::sqeuclidean>(p, panels, blocks[b]);
    if (p.metric == Metric::cosine) find_distances<Metric::cosine>(p, panels, blocks[b]);
  }
}

}  // namespace fastmeta::FASTMETA_ISA
