// C = A B for the small matrices of one task. B and C have rows padded to whole vectors, so there are no column tails.
// A tile of C, kRows x 2 vectors, stays in registers while the inner dimension passes: per vector of B loaded, kRows
// multiply-adds. Memory moved: B once for every kRows rows of C, A once for every two vectors of C.
#pragma once
#include <cstdint>

#include "vector.h"

namespace fastmeta::FASTMETA_ISA {

// Rows of a tile: as many as leave registers for the vectors of B and the number from A.
constexpr int kRows = kVectorBytes == 64 ? 8 : kVectorBytes == 32 ? 6 : 4;

// The row length in memory of a matrix with `width` columns.
template <class R>
constexpr int64_t padded(int64_t width) {
  return (width + kLanes<R> - 1) / kLanes<R> * kLanes<R>;
}

// An operand A(i, k) = data[i * row + k * column]: either way round.
template <class R>
struct Operand {
  const R* data;
  int64_t row, column;
};

template <class R, int M, int V>
FASTMETA_INLINE void matmul_tile(R* c, int64_t ldc, Operand<R> a, const R* b, int64_t ldb, int64_t inner, bool add) {
  Vector<R> sum[M][V];
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int j = 0; j < V; j++)
      sum[i][j] = add ? load(c + i * ldc + j * kLanes<R>) : Vector<R>{};
  for (int64_t k = 0; k < inner; k++) {
    Vector<R> row[V];
#pragma GCC unroll 2
    for (int j = 0; j < V; j++) row[j] = load(b + k * ldb + j * kLanes<R>);
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) {
      const R value = a.data[i * a.row + k * a.column];
#pragma GCC unroll 2
      for (int j = 0; j < V; j++) sum[i][j] += value * row[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 2
    for (int j = 0; j < V; j++) store(c + i * ldc + j * kLanes<R>, sum[i][j]);
}

// The last rows of C, fewer than kRows of them.
template <class R, int M, int V>
FASTMETA_INLINE void matmul_rest(int64_t rows, R* c, int64_t ldc, Operand<R> a, const R* b, int64_t ldb, int64_t inner,
                                 bool add) {
  if constexpr (M > 0) {
    if (rows == M) return matmul_tile<R, M, V>(c, ldc, a, b, ldb, inner, add);
    matmul_rest<R, M - 1, V>(rows, c, ldc, a, b, ldb, inner, add);
  }
}

template <class R, int V>
inline void matmul_columns(R* c, int64_t ldc, Operand<R> a, const R* b, int64_t ldb, int64_t rows, int64_t inner,
                           bool add) {
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows)
    matmul_tile<R, kRows, V>(c + i * ldc, ldc, {a.data + i * a.row, a.row, a.column}, b, ldb, inner, add);
  if (i < rows)
    matmul_rest<R, kRows - 1, V>(rows - i, c + i * ldc, ldc, {a.data + i * a.row, a.row, a.column}, b, ldb, inner, add);
}

// C[rows, columns] = A[rows, inner] B[inner, columns], or += with `add`; columns rounded up to whole vectors.
template <class R>
inline void matmul(R* c, int64_t ldc, Operand<R> a, const R* b, int64_t ldb, int64_t rows, int64_t columns, int64_t inner,
                   bool add) {
  int64_t j = 0;
  for (; j + kLanes<R> < columns; j += 2 * kLanes<R>)
    matmul_columns<R, 2>(c + j, ldc, a, b + j, ldb, rows, inner, add);
  if (j < columns) matmul_columns<R, 1>(c + j, ldc, a, b + j, ldb, rows, inner, add);
}

}  // namespace fastmeta::FASTMETA_ISA
