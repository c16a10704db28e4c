// The losses of the mlp ops: value, gradient and second derivative in the outputs. Rows are n examples of [out], padded.
#include "mlp_task.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
R mse(const R* target, int64_t classes, int64_t ld, const Pass<R>& pass, const R* z, R* d) {
  double total = 0;
  for (int64_t i = 0; i < pass.n; i++) {
    for (int64_t j = 0; j < classes; j++) {
      const R difference = z[i * ld + j] - target[i * classes + j];
      d[i * ld + j] = pass.scale * difference;
      total += double(difference) * difference;
    }
    for (int64_t j = classes; j < ld; j++) d[i * ld + j] = 0;
  }
  const int64_t elements = pass.n * classes;
  return elements ? R(total / double(elements)) : R(0);
}

// p = softmax(z) of one row; returns the sum of exp(z - largest).
template <class R>
FASTMETA_INLINE R softmax(const R* z, int64_t classes, int64_t ld, R largest, R* p) {
  Vector<R> sums = {};
  for (int64_t v = 0; v < ld; v += kLanes<R>) {
    R e[kLanes<R>];
#pragma omp simd
    for (int64_t j = 0; j < kLanes<R>; j++) e[j] = v + j < classes ? exp_approx(z[v + j] - largest) : R(0);
    sums += load(e);
    store(p + v, load(e));
  }
  const R sum = sum_lanes<R>(sums), inverse = 1 / sum;
  for (int64_t v = 0; v < ld; v += kLanes<R>) store(p + v, load(p + v) * inverse);
  return sum;
}

// A label's place in the loss: what its example counts, NaN where it is no class.
template <class R>
FASTMETA_INLINE R weight_of(int64_t label, int64_t classes, R scale) {
  return label == kIgnoreIndex ? R(0) : label >= 0 && label < classes ? scale : R(NAN);
}

template <class R>
R cross_entropy(const int64_t* target, int64_t classes, int64_t ld, const Pass<R>& pass, const R* z, R* d, R* row_sums) {
  int64_t counted = 0;
  double total = 0;
  for (int64_t i = 0; i < pass.n; i++) {
    const R* row = z + i * ld;
    R largest = row[0];
    for (int64_t j = 1; j < classes; j++) largest = row[j] > largest ? row[j] : largest;
    R *p = pass.probability + i * ld, *dr = d + i * ld;
    const R sum = softmax(row, classes, ld, largest, p), weight = weight_of(target[i], classes, pass.scale);
    if (weight == 0) {
      row_sums[i] = 1;  // its logarithm is 0
      std::memset(dr, 0, size_t(ld) * sizeof(R));
      continue;
    }
    counted++;
    row_sums[i] = sum;
    for (int64_t v = 0; v < ld; v += kLanes<R>) store(dr + v, load(p + v) * weight);
    if (weight != weight) {
      total = NAN;
    } else {
      dr[target[i]] = weight * (p[target[i]] - 1);
      total += double(largest - row[target[i]]);
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < pass.n; i++) row_sums[i] = log_approx(row_sums[i]);
  for (int64_t i = 0; i < pass.n; i++) total += double(row_sums[i]);
  return counted ? R(total / double(counted)) : R(0);
}

}  // namespace

template <class R>
R example_scale(const MlpShape& shape, const void* y, int64_t n) {
  if (shape.loss == Loss::mse) return n ? R(2) / R(n * shape.width[shape.layers]) : R(0);
  int64_t counted = 0;
  for (int64_t i = 0; i < n; i++) counted += static_cast<const int64_t*>(y)[i] != kIgnoreIndex;
  return counted ? 1 / R(counted) : R(0);
}

template <class R>
R Task<R>::loss(const void* y, Pass<R>& pass, R scale) const {
  pass.scale = scale;
  const int L = shape.layers;
  const int64_t classes = shape.width[L], ld = layout.ld[L];
  if (shape.loss == Loss::mse) return mse(static_cast<const R*>(y), classes, ld, pass, pass.x[L], pass.d[L]);
  return cross_entropy(static_cast<const int64_t*>(y), classes, ld, pass, pass.x[L], pass.d[L], row_sums);
}

template <class R>
void Task<R>::output_tangent(const Pass<R>& pass, const void* y) const {
  const int L = shape.layers;
  const int64_t classes = shape.width[L], ld = layout.ld[L];
  for (int64_t i = 0; i < pass.n; i++) {
    const R *r = rx[L] + i * ld, *p = pass.probability + i * ld;
    R* out = rd[L] + i * ld;
    if (shape.loss == Loss::mse) {
      for (int64_t v = 0; v < ld; v += kLanes<R>) store(out + v, load(r + v) * pass.scale);
      continue;
    }
    const R weight = weight_of(static_cast<const int64_t*>(y)[i], classes, pass.scale);
    if (weight == 0) {
      std::memset(out, 0, size_t(ld) * sizeof(R));
      continue;
    }
    Vector<R> sums = {};
    for (int64_t v = 0; v < ld; v += kLanes<R>) sums += load(p + v) * load(r + v);
    const R mean = sum_lanes<R>(sums);
    for (int64_t v = 0; v < ld; v += kLanes<R>) store(out + v, weight * load(p + v) * (load(r + v) - mean));
  }
}

#define INSTANTIATE(R)                                    \
  template R example_scale<R>(const MlpShape&, const void*, int64_t); \
  template R Task<R>::loss(const void*, Pass<R>&, R) const; \
  template void Task<R>::output_tangent(const Pass<R>&, const void*) const;
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
