// Transposition by corners of 16 bytes a row.
#pragma once
#include "runtime/cpu/vector.h"

namespace fastmeta::FASTMETA_ISA {

// out [4, 4] = rows [4, 4] transposed; the rows of both lie so far apart.
FASTMETA_INLINE void transpose_corner(const float* rows, int64_t row_length, float* out, int64_t out_length) {
  using V = VectorOf<float, 16>::unaligned;
  typedef int32_t Index __attribute__((vector_size(16)));
  VectorOf<float, 16>::type r[4], low[2], high[2];
  for (int i = 0; i < 4; i++) r[i] = *reinterpret_cast<const V*>(rows + i * row_length);
  for (int i = 0; i < 2; i++) {
    low[i] = FASTMETA_SHUFFLE(r[2 * i], r[2 * i + 1], Index, 0, 4, 1, 5);
    high[i] = FASTMETA_SHUFFLE(r[2 * i], r[2 * i + 1], Index, 2, 6, 3, 7);
  }
  *reinterpret_cast<V*>(out) = FASTMETA_SHUFFLE(low[0], low[1], Index, 0, 1, 4, 5);
  *reinterpret_cast<V*>(out + out_length) = FASTMETA_SHUFFLE(low[0], low[1], Index, 2, 3, 6, 7);
  *reinterpret_cast<V*>(out + 2 * out_length) = FASTMETA_SHUFFLE(high[0], high[1], Index, 0, 1, 4, 5);
  *reinterpret_cast<V*>(out + 3 * out_length) = FASTMETA_SHUFFLE(high[0], high[1], Index, 2, 3, 6, 7);
}
FASTMETA_INLINE void transpose_corner(const double* rows, int64_t row_length, double* out, int64_t out_length) {  // [2, 2]
  using V = VectorOf<double, 16>::unaligned;
  typedef int64_t Index __attribute__((vector_size(16)));
  const VectorOf<double, 16>::type a = *reinterpret_cast<const V*>(rows), b = *reinterpret_cast<const V*>(rows + row_length);
  *reinterpret_cast<V*>(out) = FASTMETA_SHUFFLE(a, b, Index, 0, 2);
  *reinterpret_cast<V*>(out + out_length) = FASTMETA_SHUFFLE(a, b, Index, 1, 3);
}

// out [columns, out_length] = rows [count, row_length] of `columns` elements, transposed; beyond `count` the rest of out's rows is 0.
template <class R>
inline void transpose(int64_t count, int64_t columns, const R* rows, int64_t row_length, R* out, int64_t out_length) {
  constexpr int64_t corner = 16 / int64_t(sizeof(R));
  if (count < out_length) std::memset(out, 0, size_t(columns * out_length) * sizeof(R));
  const int64_t whole = count / corner * corner;
  int64_t d = 0;
  for (; d + corner <= columns; d += corner)
    for (int64_t q = 0; q < whole; q += corner)
      transpose_corner(rows + q * row_length + d, row_length, out + d * out_length + q, out_length);
  for (int64_t q = 0; q < count; q++)
    for (int64_t i = q < whole ? d : 0; i < columns; i++) out[i * out_length + q] = rows[q * row_length + i];
}

}  // namespace fastmeta::FASTMETA_ISA
