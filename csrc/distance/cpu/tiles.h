// Register tiles of the distance ops: a few rows by kBlock columns, whose sums stay in registers while the inner
// dimension passes. The columns are queries (distances) or features (gradients), kParts vectors wide.
#pragma once
#include "runtime/cpu/sizes.h"
#include "runtime/cpu/transpose.h"

namespace fastmeta::FASTMETA_ISA {

constexpr int kBlock = 16;

template <class R>
constexpr int kParts = kBlock / int(kLanes<R>);
// Rows of a tile: with the operands, its sums fill the registers.
template <class R>
constexpr int kTileRows = kVectorBytes == 64 ? 16 / kParts<R> / (sizeof(R) == 4 ? 2 : 1)
                          : kRegisters == 32 ? 20 / kParts<R>
                          : kParts<R> > 6    ? 1
                                             : 12 / kParts<R>;

// A wide tile is kWide times as wide and has fewer rows: where the inner dimension is short, its rows come and go in longer pieces.
constexpr int kWide = kVectorBytes == 64 ? 4 : 2;
template <class R>
constexpr int kWideRows = kWide * kParts<R> > 12 ? 1 : (kRegisters == 32 ? 20 : 12) / (kWide * kParts<R>);

template <class R>
using Columns = Vector<R>[kParts<R>];  // kBlock numbers

// Calls f(Size<k>(), first) on tiles of nearly equal size k <= kTileRows that cover [begin, end).
template <class R, class F>
FASTMETA_INLINE void for_each_tile(int64_t begin, int64_t end, F&& f) {
  for_each_part<kTileRows<R>>(begin, end, f);
}

template <class R>
FASTMETA_INLINE void load_columns(const R* from, Columns<R>& x) {
#pragma GCC unroll 8
  for (int part = 0; part < kParts<R>; part++) x[part] = load(from + part * kLanes<R>);
}

template <class R>
FASTMETA_INLINE void store_columns(R* to, const Columns<R>& x) {
#pragma GCC unroll 8
  for (int part = 0; part < kParts<R>; part++) store(to + part * kLanes<R>, x[part]);
}

// The same for the first `width` of the columns; the others are 0.
template <class R>
FASTMETA_INLINE void load_columns(const R* from, int64_t width, Columns<R>& x) {
  if (width >= kBlock) return load_columns(from, x);
  R whole[kBlock] = {};
  std::memcpy(whole, from, size_t(width) * sizeof(R));
  load_columns<R>(whole, x);
}

template <class R>
FASTMETA_INLINE void store_columns(R* to, int64_t width, const Columns<R>& x) {
  if (width >= kBlock) return store_columns(to, x);
  R whole[kBlock];
  store_columns<R>(whole, x);
  std::memcpy(to, whole, size_t(width) * sizeof(R));
}

// K rows of out = sum, or += with `add`.
template <class R, int K>
FASTMETA_INLINE void store_tile(const Columns<R> (&sum)[K][1], R* out, bool add) {
#pragma GCC unroll 16
  for (int k = 0; k < K; k++)
#pragma GCC unroll 8
    for (int part = 0; part < kParts<R>; part++) {
      R* to = out + k * kBlock + part * kLanes<R>;
      store(to, add ? load(to) + sum[k][0][part] : sum[k][0][part]);
    }
}

// out[k] = sum_d (columns_d - rows_k[d])^2 for `count` columns_d, or += with `add`, for K rows.
template <class R, int K>
FASTMETA_INLINE void tile_squares(int64_t count, const R* columns, const R* rows, int64_t row_length, R* out, bool add) {
  Columns<R> sum[K][1] = {};
  for (int64_t d = 0; d < count; d++) {
    Columns<R> x;
    load_columns(columns + d * kBlock, x);
#pragma GCC unroll 16
    for (int k = 0; k < K; k++) {
      const R row = rows[k * row_length + d];
#pragma GCC unroll 8
      for (int part = 0; part < kParts<R>; part++) {
        const Vector<R> difference = x[part] - row;
        sum[k][0][part] += difference * difference;
      }
    }
  }
  store_tile(sum, out, add);
}

// sum[k][w] -= sum_i weights[i * step + k * stride] (columns_iw - centre[w]) for `count` rows i of W columns, `across` apart, the
// rows `length` apart, and K rows of sums. Two at a time: a processor that takes four instructions a cycle else waits for them.
template <class R, int K, int W>
FASTMETA_INLINE void tile_products(int64_t count, const R* weights, int64_t step, int64_t stride, const R* columns, int64_t length,
                                   int64_t across, Columns<R> (&sum)[K][W], const Columns<R>* centre = nullptr) {
#pragma GCC unroll 2
  for (int64_t i = 0; i < count; i++) {
    Columns<R> x[W];
#pragma GCC unroll 4
    for (int w = 0; w < W; w++) {
      load_columns(columns + i * length + w * across, x[w]);
      if (centre)
        for (int part = 0; part < kParts<R>; part++) x[w][part] -= centre[w][part];
    }
#pragma GCC unroll 16
    for (int k = 0; k < K; k++) {
      const R weight = weights[i * step + k * stride];
#pragma GCC unroll 4
      for (int w = 0; w < W; w++)
#pragma GCC unroll 8
        for (int part = 0; part < kParts<R>; part++) sum[k][w][part] -= weight * x[w][part];
    }
  }
}

// out[k] = -sum_d columns_d rows_k[d], likewise, for rows that lie in panels of kBlock features, `panel` apart.
template <class R, int K>
FASTMETA_INLINE void tile_dots(int64_t count, const R* columns, const R* rows, int64_t panel, R* out, bool add) {
  Columns<R> sum[K][1] = {};
  for (int64_t d = 0; d < count; d += kBlock, columns += kBlock * kBlock, rows += panel)
    tile_products<R, K, 1>(least(kBlock, count - d), rows, 1, kBlock, columns, kBlock, 0, sum);
  store_tile(sum, out, add);
}

constexpr int64_t kCopied = 64;  // classes copied at a time, so that their lanes are still in cache

// rows [count, N] = lanes [N, kBlock] transposed.
template <class R>
inline void store_rows(int64_t N, int64_t count, const R* lanes, R* rows) {
  for (int64_t tile = 0; tile < N; tile += kCopied)
    for (int64_t q = 0; q < count; q++)
      for (int64_t n = tile; n < least(N, tile + kCopied); n++) rows[q * N + n] = lanes[n * kBlock + q];
}

}  // namespace fastmeta::FASTMETA_ISA
