// Register tiles of the distance ops: a few rows by kBlock columns, whose sums stay in registers while the inner
// dimension passes. The columns are queries (distances) or features (gradients), kParts vectors wide.
#pragma once
#include <utility>

#include "vector.h"

namespace fastmeta::FASTMETA_ISA {

constexpr int kBlock = 16;

template <class R>
constexpr int kParts = kBlock / int(kLanes<R>);
// Rows of a tile: with the operands, its sums fill the 16 registers (AVX-512: 32).
template <class R>
constexpr int kTileRows = kVectorBytes == 64 ? 16 / kParts<R> / (sizeof(R) == 4 ? 2 : 1) : kParts<R> > 6 ? 1 : 12 / kParts<R>;

template <class R>
using Columns = Vector<R>[kParts<R>];  // kBlock numbers

FASTMETA_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FASTMETA_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

template <int size>
struct Size {
  static constexpr int value = size;
};

template <class F, int... sizes>
FASTMETA_INLINE void with_size(int64_t size, F&& f, std::integer_sequence<int, sizes...>) {
  (void)((size == sizes + 1 && (f(Size<sizes + 1>()), true)) || ...);
}

// Calls f(Size<k>(), first) on tiles of nearly equal size k <= kTileRows that cover [begin, end).
template <class R, class F>
FASTMETA_INLINE void for_each_tile(int64_t begin, int64_t end, F&& f) {
  const int64_t count = end - begin, tiles = (count + kTileRows<R> - 1) / kTileRows<R>;
  for (int64_t i = 0; i < tiles; i++) {
    const int64_t size = count / tiles + (i < count % tiles);
    with_size(size, [&](auto rows) __attribute__((always_inline)) { f(rows, begin); },
              std::make_integer_sequence<int, kTileRows<R>>());
    begin += size;
  }
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

// out[k] = sum_d (columns_d - rows_k[d])^2 for `count` columns_d, or += with `add`, for K rows.
template <class R, int K>
FASTMETA_INLINE void tile_squares(int64_t count, const R* columns, const R* rows, int64_t row_length, R* out, bool add) {
  Columns<R> sum[K] = {};
  for (int64_t d = 0; d < count; d++) {
    Columns<R> x;
    load_columns(columns + d * kBlock, x);
#pragma GCC unroll 16
    for (int k = 0; k < K; k++) {
      const R row = rows[k * row_length + d];
#pragma GCC unroll 8
      for (int part = 0; part < kParts<R>; part++) {
        const Vector<R> difference = x[part] - row;
        sum[k][part] += difference * difference;
      }
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < K; k++)
#pragma GCC unroll 8
    for (int part = 0; part < kParts<R>; part++) {
      R* to = out + k * kBlock + part * kLanes<R>;
      store(to, add ? load(to) + sum[k][part] : sum[k][part]);
    }
}

// sum[k] -= sum_i weights[i * step + k * stride] (columns_i - centre) for `count` columns_i, `length` apart, and K rows.
template <class R, int K>
FASTMETA_INLINE void tile_products(int64_t count, const R* weights, int64_t step, int64_t stride, const R* columns,
                                   int64_t length, Columns<R> (&sum)[K], const Columns<R>* centre = nullptr) {
  for (int64_t i = 0; i < count; i++) {
    Columns<R> x;
    load_columns(columns + i * length, x);
    if (centre)
      for (int part = 0; part < kParts<R>; part++) x[part] -= (*centre)[part];
#pragma GCC unroll 16
    for (int k = 0; k < K; k++) {
      const R weight = weights[i * step + k * stride];
#pragma GCC unroll 8
      for (int part = 0; part < kParts<R>; part++) sum[k][part] -= weight * x[part];
    }
  }
}

FASTMETA_INLINE void transpose_corner(const float* rows, int64_t row_length, float* out) {  // [4, 4]
  using V = VectorOf<float, 16>::unaligned;
  typedef int32_t Index __attribute__((vector_size(16)));
  VectorOf<float, 16>::type r[4], low[2], high[2];
  for (int i = 0; i < 4; i++) r[i] = *reinterpret_cast<const V*>(rows + i * row_length);
  for (int i = 0; i < 2; i++) {
    low[i] = FASTMETA_SHUFFLE(r[2 * i], r[2 * i + 1], Index, 0, 4, 1, 5);
    high[i] = FASTMETA_SHUFFLE(r[2 * i], r[2 * i + 1], Index, 2, 6, 3, 7);
  }
  *reinterpret_cast<V*>(out) = FASTMETA_SHUFFLE(low[0], low[1], Index, 0, 1, 4, 5);
  *reinterpret_cast<V*>(out + kBlock) = FASTMETA_SHUFFLE(low[0], low[1], Index, 2, 3, 6, 7);
  *reinterpret_cast<V*>(out + 2 * kBlock) = FASTMETA_SHUFFLE(high[0], high[1], Index, 0, 1, 4, 5);
  *reinterpret_cast<V*>(out + 3 * kBlock) = FASTMETA_SHUFFLE(high[0], high[1], Index, 2, 3, 6, 7);
}
FASTMETA_INLINE void transpose_corner(const double* rows, int64_t row_length, double* out) {  // [2, 2]
  using V = VectorOf<double, 16>::unaligned;
  typedef int64_t Index __attribute__((vector_size(16)));
  const VectorOf<double, 16>::type a = *reinterpret_cast<const V*>(rows), b = *reinterpret_cast<const V*>(rows + row_length);
  *reinterpret_cast<V*>(out) = FASTMETA_SHUFFLE(a, b, Index, 0, 2);
  *reinterpret_cast<V*>(out + kBlock) = FASTMETA_SHUFFLE(a, b, Index, 1, 3);
}

// out [count, kBlock] = rows [lanes, row_length] of `count` elements, transposed; the columns beyond `lanes` are 0.
template <class R>
inline void transpose(int64_t count, int64_t lanes, const R* rows, int64_t row_length, R* out) {
  constexpr int64_t corner = 16 / int64_t(sizeof(R));
  if (lanes < kBlock) std::memset(out, 0, size_t(count) * kBlock * sizeof(R));
  const int64_t whole = lanes / corner * corner;
  int64_t d = 0;
  for (; d + corner <= count; d += corner)
    for (int64_t q = 0; q < whole; q += corner) transpose_corner(rows + q * row_length + d, row_length, out + d * kBlock + q);
  for (int64_t q = 0; q < lanes; q++)
    for (int64_t i = q < whole ? d : 0; i < count; i++) out[i * kBlock + q] = rows[q * row_length + i];
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
