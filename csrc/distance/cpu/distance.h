// Distances of blocks of kBlock queries to N prototypes, and the gradients from their coefficients w, where
//   dquery_q = sum_n w_nq (q - c_n),   dprototypes_n = sum_q w_nq (c_n - q).
// A block's distances, and later its coefficients, are an [N, kBlock] array: one query per lane, so that softmax runs over
// whole vectors however few classes there are. Distances are sums of squared differences in register tiles (tiles.h), exact
// at any offset; of many prototypes |q - m|^2 + |c - m|^2 - 2 (q - m) . (c - m), m their mean: half the operations (squares.h).
// The gradients are matrix products of what is left of both sides after m is taken off:
//   dquery_q = (sum_n w_nq) (q - m) - sum_n w_nq (c_n - m).
// Both would lose digits where q and c_n are nearer to each other than to m. Such distances are found again by differences; such
// coefficients are taken out into a list, and these differences are added one by one. Long sums are sums of short ones.
#pragma once
#include "distance/proto.h"
#include "distance/cpu/tiles.h"
#include "runtime/cpu/stored.h"

namespace fastmeta::FASTMETA_ISA {

// Measured on an AMD EPYC with AVX-512, 2 cores, 2026-11-24 (kFew, kLongRow: 2026-11-26): errors decide sums' lengths and kNear, times the
// rest.
constexpr int64_t kChunk = 128;     // features that are summed before they join a distance
constexpr int64_t kRun = 64;        // prototypes that are summed before they join dquery
constexpr int64_t kGroup = 4;       // blocks that share each load of the prototypes
constexpr int64_t kSegment = 8;     // blocks whose queries are summed before they join dprototypes
constexpr int64_t kFew = 8;         // prototypes that are too few for the tiles of many
constexpr int64_t kMany = 64;       // prototypes, and features, from which distances come from products
constexpr int64_t kRowSum = 512;    // features that are summed along a row before they join its square
constexpr int64_t kLongRow = 2048;  // features that are summed, in kBlock sums, before they join a distance to few prototypes
constexpr int kCancelled = 2;       // by differences again where |q - c|^2 < (|q - m|^2 + |c - m|^2) / kCancelled: see squares.h
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
  R* own;                      // [kBlock, D], where those are, or what is widened; null otherwise
  R* dquery;                   // [count, D], where the gradient is made
  R inverse_norms[kBlock];     // 1 / |q|, with "cosine"
  R* distances;                // [N, kBlock], replaced by the coefficients
  R* sums;                     // [N], of the coefficients over the queries
  R* dlogit_sums;              // [N], of the gradients to the logits over the queries, where p.column_sums is asked for
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
  R* own;            // [N, D], where those are, or what is widened; null otherwise
  R* dprototypes;    // [N, D], where the gradient is made
  R* inverse_norms;  // [N], 1 / |c|, 0 for a zero vector; with "cosine"
  R* centre;         // [chunks, kBlock]
  R* values;         // [chunks, N, kBlock]
  R* radius;         // [N], |c - m|^2
};

template <class R>
FASTMETA_INLINE int64_t feature_chunks(const ProtoProblem<R>& p) {
  return (p.D + kBlock - 1) / kBlock;
}

template <class R>
FASTMETA_INLINE bool by_products(const ProtoProblem<R>& p) {
  return p.N >= kMany && p.D >= kMany && !p.kept_distances;
}

// Whether anything reads the prototypes less their mean.
template <class R>
FASTMETA_INLINE bool takes_panels(const ProtoProblem<R>& p) {
  return p.dquery || p.dprototypes || by_products(p);
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

// |x - y|^2 of kRowSum features or fewer.
template <class R>
R short_square(const R* x, const R* y, int64_t D) {
  const auto square = [](auto difference) __attribute__((always_inline)) { return difference * difference; };
  return sum_of_row<R>(
      D, [&](int64_t d) __attribute__((always_inline)) { return square(load(x + d) - load(y + d)); },
      [&](int64_t d) __attribute__((always_inline)) { return square(x[d] - y[d]); });
}

template <class R>
FASTMETA_INLINE R squared_distance(const R* x, const R* y, int64_t D) {
  R total = 0;
  for (; D > kRowSum; D -= kRowSum, x += kRowSum, y += kRowSum) total += short_square(x, y, kRowSum);
  return total + short_square(x, y, D);
}

template <class R>
inline void find_radii(const ProtoProblem<R>& p, const Panels<R>& panels, Block<R>& block) {
  for (int64_t q = 0; q < block.count; q++) block.radius[q] = squared_distance(block.rows + q * p.D, panels.centre, p.D);
}

}  // namespace fastmeta::FASTMETA_ISA
