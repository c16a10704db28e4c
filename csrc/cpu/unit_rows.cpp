// unit = x / |x| of each row, and back: what the metric "cosine" adds to the distance ops. A thread owns rows; D features
// in and out once, 4 flops each forward and 6 backward.
#include "../parallel.h"
#include "distance.h"
#include "kernels.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

constexpr int64_t kRowGrain = 1 << 14;  // elements that are worth another thread

// Sums of kChunk terms each, added up.
template <class R>
R dot(const R* a, const R* b, int64_t count) {
  R total = 0;
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    R part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t d = begin; d < least(begin + kChunk, count); d++) part += a[d] * b[d];
    total += part;
  }
  return total;
}

}  // namespace

template <class R>
void unit_rows_fwd(const UnitRows<R>& p) {
  parallel_for(p.units, 1 + kRowGrain / (p.D + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const R *x = p.x + i * p.D, square = dot(x, x, p.D), inverse = square == 0 ? R(0) : 1 / square_root(square);
      p.inverse_norms[i] = inverse;
#pragma omp simd
      for (int64_t d = 0; d < p.D; d++) p.unit[i * p.D + d] = inverse * x[d];
    }
  });
}

template <class R>
void unit_rows_bwd(const UnitRows<R>& p) {
  parallel_for(p.rows, 1 + kRowGrain / (p.D + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      R* dx = p.dx + i * p.D;
      const R *unit = p.unit + i % p.units * p.D, inverse = p.inverse_norms[i % p.units], along = dot(unit, dx, p.D);
#pragma omp simd
      for (int64_t d = 0; d < p.D; d++) dx[d] = inverse * (dx[d] - along * unit[d]);
    }
  });
}

template void unit_rows_fwd(const UnitRows<float>&);
template void unit_rows_fwd(const UnitRows<double>&);
template void unit_rows_bwd(const UnitRows<float>&);
template void unit_rows_bwd(const UnitRows<double>&);

}  // namespace fastmeta::FASTMETA_ISA
