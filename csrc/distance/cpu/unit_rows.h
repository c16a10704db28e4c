// What the metric "cosine" adds to the distance ops: unit vectors in place of the rows, and gradients back through them.
#pragma once
#include "distance/cpu/distance.h"

namespace fastmeta::FASTMETA_ISA {

// Sums of kRowSum terms each, added up.
template <class R>
inline R dot(const R* a, const R* b, int64_t count) {
  R total = 0;
  for (int64_t begin = 0; begin < count; begin += kRowSum)
    total += sum_of_row<R>(
        least(kRowSum, count - begin), [&](int64_t d) __attribute__((always_inline)) { return load(a + begin + d) * load(b + begin + d); },
        [&](int64_t d) __attribute__((always_inline)) { return a[begin + d] * b[begin + d]; });
  return total;
}

// unit = x / |x|, a zero vector as it is; returns 1 / |x|, 0 for a zero vector. `unit` may be `x`.
template <class R>
inline R unit_row(const R* x, int64_t D, R* unit) {
  const R square = dot(x, x, D), inverse = square == 0 ? R(0) : 1 / square_root(square);
#pragma omp simd
  for (int64_t d = 0; d < D; d++) unit[d] = inverse * x[d];
  return inverse;
}

// Whether the square of the row at `first` is 0.
template <class R>
inline bool is_zero(const Stored<const R>& x, int64_t first, int64_t D) {
  R room[kRowSum];
  for (int64_t d = 0; d < D; d += kRowSum) {
    const int64_t width = least(kRowSum, D - d);
    const R* row = read(x, first + d, width, room);
    if (!(dot(row, row, width) == 0)) return false;
  }
  return true;
}

// From the gradient to a unit vector that to x, in place: dx = (dunit - unit <unit, dunit>) / |x|; 0 for a zero vector, whatever dunit
// is. 1 / |x| is 0 too where |x|^2 overflows. x begins at `first`.
template <class R>
inline void unit_row_gradient(const Stored<const R>& x, int64_t first, const R* unit, R inverse, int64_t D, R* dx) {
  if (inverse == 0 && is_zero(x, first, D)) return void(std::memset(dx, 0, size_t(D) * sizeof(R)));
  const R along = dot<R>(unit, dx, D);
#pragma omp simd
  for (int64_t d = 0; d < D; d++) dx[d] = inverse * (dx[d] - along * unit[d]);
}

}  // namespace fastmeta::FASTMETA_ISA
