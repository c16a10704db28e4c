// Products of the small matrices of one task. Rows are padded to whole vectors; what padding holds is never a result.
//
//   products: C = start + A_1 B_1 + A_2 B_2 + ..., then perhaps relu or a gate. A tile of C, a few rows by 3 vectors, stays in
//             registers while the inner dimensions pass: per vector of B loaded, one multiply-add a row. A is read number by
//             number, either way round.
//   dots:     C = A B', both along their rows: for few columns of C, where products would leave most lanes empty, and for
//             Gram matrices.
#pragma once
#include "runtime/cpu/sizes.h"
#include "runtime/cpu/vector.h"

namespace fastmeta::FASTMETA_ISA {

// The row length in memory of a matrix with `width` columns.
template <class R>
constexpr int64_t padded(int64_t width) {
  return (width + kLanes<R> - 1) / kLanes<R> * kLanes<R>;
}

// Vectors across a tile of products, and its rows: as many as leave registers for the vectors of B and the number from A. Of the shapes
// that do, these were the fastest on an AMD EPYC, AVX2 and AVX-512, 2026-11-25.
constexpr int kAcross = 3;
template <class R>
constexpr int rows_of(int across) {
  if (kRegisters == 32) return sizeof(R) == 4 ? 8 : 4;  // double: less to compile
  return across == 3 ? 4 : across == 2 ? 6 : 8;
}

// An operand A(i, k) = data[i * row + k * column]: either way round.
template <class R>
struct Operand {
  const R* data;
  int64_t row, column;
};

template <class R>
struct Product {
  Operand<R> a;
  const R* b;
  int64_t ldb, inner;
};

enum class Epilogue { keep, relu, gate };  // gate: 0 where the gate is 0 or less; a NaN lets through

template <class R>
struct Destination {
  R* c;
  int64_t ldc;
  const R* start = nullptr;  // null: 0
  int64_t start_row = 0;     // 0: one row for all of C's
  Epilogue epilogue = Epilogue::keep;
  const R* gate = nullptr;  // rows like C's
};

template <class R>
FASTMETA_INLINE Vector<R> relu(Vector<R> x) {
  const Vector<R> zero = {};
  return x < zero ? zero : x;  // NaN stays NaN
}

// What becomes of a sum at this place of C.
template <class R>
FASTMETA_INLINE Vector<R> apply_epilogue(const Destination<R>& t, int64_t at, Vector<R> sum) {
  const Vector<R> zero = {};
  if (t.epilogue == Epilogue::relu) return relu<R>(sum);
  if (t.epilogue == Epilogue::gate) return load(t.gate + at) <= zero ? zero : sum;
  return sum;
}

// sum [M, V vectors] += A B: `inner` steps, of `column` numbers in A and `ldb` in B; rows of A lie `row` numbers apart.
template <class R, int M, int V>
FASTMETA_INLINE void accumulate(Vector<R> (&sum)[M][V], const R* a, int64_t row, int64_t column, const R* b, int64_t ldb, int64_t inner) {
  for (int64_t k = 0; k < inner; k++, a += column, b += ldb) {
    Vector<R> x[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; v++) x[v] = load(b + v * kLanes<R>);
#pragma GCC unroll 14
    for (int m = 0; m < M; m++) {
      const R value = a[m * row];
#pragma GCC unroll 3
      for (int v = 0; v < V; v++) sum[m][v] += value * x[v];
    }
  }
}

template <class R, int M, int V>
FASTMETA_INLINE void product_tile(const Destination<R>& t, int64_t i, int64_t j, int count, const Product<R>* products) {
  Vector<R> sum[M][V] = {};
  if (t.start)
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 3
      for (int v = 0; v < V; v++) sum[m][v] = load(t.start + (i + m) * t.start_row + j + v * kLanes<R>);
  for (int p = 0; p < count; p++) {
    const Product<R>& product = products[p];
    const int64_t row = product.a.row;
    accumulate<R, M, V>(sum, product.a.data + i * row, row, product.a.column, product.b + j, product.ldb, product.inner);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 3
    for (int v = 0; v < V; v++) {
      const int64_t at = (i + m) * t.ldc + j + v * kLanes<R>;
      store(t.c + at, apply_epilogue(t, at, sum[m][v]));
    }
}

template <class R, int V>
inline void product_panel(const Destination<R>& t, int64_t rows, int64_t j, int count, const Product<R>* products) {
  for_each_part<rows_of<R>(V)>(0, rows, [&](auto part, int64_t i) __attribute__((always_inline)) {
    product_tile<R, decltype(part)::value, V>(t, i, j, count, products);
  });
}

// C [rows, columns]; columns rounded up to whole vectors. C may be `start`, but no operand.
template <class R>
void products(const Destination<R>& t, int64_t rows, int64_t columns, const Product<R>* list, int count) {
  const int64_t vectors = (columns + kLanes<R> - 1) / kLanes<R>;
  for_each_part<kAcross>(0, vectors, [&](auto part, int64_t first) __attribute__((always_inline)) {
    product_panel<R, decltype(part)::value>(t, rows, first * kLanes<R>, count, list);
  });
}

template <class R, int count>
inline void products(const Destination<R>& t, int64_t rows, int64_t columns, const Product<R> (&list)[count]) {
  products<R>(t, rows, columns, list, count);
}

template <class R>
constexpr R kOne = 1;

// The sums of the columns of d [rows, columns], or += with `add`: a product with ones.
template <class R>
inline void column_sums(const R* d, int64_t ldd, int64_t rows, int64_t columns, R* sums, bool add = false) {
  products<R>({sums, ldd, add ? sums : nullptr}, 1, columns, {{{&kOne<R>, 0, 0}, d, ldd, rows}});
}

// The first `count` lanes of x; the others 0.
template <class R>
FASTMETA_INLINE Vector<R> first_lanes(Vector<R> x, int64_t count) {
  Vector<R> lane;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<R>; i++) lane[i] = R(i);
  const Vector<R> zero = {};
  return lane < zero + R(count) ? x : zero;
}

template <class R, int M, int N>
FASTMETA_INLINE void dot_tile(R* c, int64_t ldc, const R* a, int64_t lda, const R* b, int64_t ldb, int64_t inner, bool add) {
  Vector<R> sum[M * N] = {};
  const int64_t whole = inner / kLanes<R> * kLanes<R>;
  const auto multiply = [&](int64_t k, auto&& pick) __attribute__((always_inline)) {
    Vector<R> x[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) x[n] = pick(load(b + n * ldb + k));
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) {
      const Vector<R> row = pick(load(a + m * lda + k));
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) sum[m * N + n] += row * x[n];
    }
  };
  for (int64_t k = 0; k < whole; k += kLanes<R>) multiply(k, [](Vector<R> x) __attribute__((always_inline)) { return x; });
  if (whole < inner) multiply(whole, [&](Vector<R> x) __attribute__((always_inline)) { return first_lanes<R>(x, inner - whole); });
  R totals[M * N];
  sum_each<R, M * N>(sum, totals);
#pragma GCC unroll 4
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) c[m * ldc + n] = add ? c[m * ldc + n] + totals[m * N + n] : totals[m * N + n];
}

// Rows of A and of B in a tile of dots; bytes of a row that pass before the next tile, so that a block of A and B stays in the
// first cache.
constexpr int kDotRows = 4, kDotColumns = kRegisters == 32 ? 5 : 3;
constexpr int64_t kDotBytes = 512;

template <class R>
inline void dot_block(R* c, int64_t ldc, const R* a, int64_t lda, const R* b, int64_t ldb, int64_t rows, int64_t columns, int64_t inner,
                      bool add) {
  for_each_part<kDotColumns>(0, columns, [&](auto across, int64_t j) __attribute__((always_inline)) {
    for_each_part<kDotRows>(0, rows, [&](auto down, int64_t i) __attribute__((always_inline)) {
      dot_tile<R, decltype(down)::value, decltype(across)::value>(c + i * ldc + j, ldc, a + i * lda, lda, b + j * ldb, ldb, inner, add);
    });
  });
}

// C [rows, columns] = A [rows, inner] B [columns, inner]', or += with `add`; padding of C stays as it is.
template <class R>
void dots(R* c, int64_t ldc, const R* a, int64_t lda, const R* b, int64_t ldb, int64_t rows, int64_t columns, int64_t inner, bool add) {
  const int64_t block = columns > kDotColumns ? kDotBytes / int64_t(sizeof(R)) : inner;
  for (; inner > block; inner -= block, a += block, b += block, add = true) dot_block(c, ldc, a, lda, b, ldb, rows, columns, block, add);
  dot_block(c, ldc, a, lda, b, ldb, rows, columns, inner, add);
}

template <class R>
struct Dot {
  const R *a, *b;
  int64_t ld, inner;  // of both
};

// The same with the start, one row, and the epilogue of products. Padding of C becomes 0.
template <class R>
void dots(const Destination<R>& t, int64_t rows, int64_t columns, const Dot<R>* list, int count) {
  for (int i = 0; i < count; i++) dots(t.c, t.ldc, list[i].a, list[i].ld, list[i].b, list[i].ld, rows, columns, list[i].inner, i > 0);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j += kLanes<R>) {
      R* c = t.c + i * t.ldc + j;
      const Vector<R> sum = first_lanes<R>(load(c), columns - j);
      store(c, apply_epilogue(t, i * t.ldc + j, t.start ? sum + load(t.start + j) : sum));
    }
}

template <class R, int count>
inline void dots(const Destination<R>& t, int64_t rows, int64_t columns, const Dot<R> (&list)[count]) {
  dots<R>(t, rows, columns, list, count);
}

// Compiled once, in matmul.cpp: they expand to many tiles.
#define FASTMETA_MATMUL(EXTERN, R)                                                                                  \
  EXTERN template void products<R>(const Destination<R>&, int64_t, int64_t, const Product<R>*, int);                \
  EXTERN template void dots<R>(R*, int64_t, const R*, int64_t, const R*, int64_t, int64_t, int64_t, int64_t, bool); \
  EXTERN template void dots<R>(const Destination<R>&, int64_t, int64_t, const Dot<R>*, int);
FASTMETA_MATMUL(extern, float)
FASTMETA_MATMUL(extern, double)

}  // namespace fastmeta::FASTMETA_ISA
