// See outputs.h.
#include "inner/cpu/outputs.h"

#include <cmath>

namespace fastmeta::FASTMETA_ISA {
namespace {

template <bool kWeighted, class R>
R mse(const Outputs<R>& o, const Targets<R>& y, const R* z, R* d, R* dweights) {
  const R* target = static_cast<const R*>(y.y);
  const int64_t classes = o.classes, ld = o.ld;
  double total = 0;
  for (int64_t i = 0; i < o.n; i++) {
    const R scale = kWeighted ? o.scale * y.weights[i] : o.scale;
    double of_example = 0, &sum = kWeighted ? of_example : total;
    for (int64_t j = 0; j < classes; j++) {
      const R difference = z[i * ld + j] - target[i * classes + j];
      d[i * ld + j] = scale * difference;
      sum += double(difference) * difference;
    }
    for (int64_t j = classes; j < ld; j++) d[i * ld + j] = 0;
    if (kWeighted) total += double(y.weights[i]) * of_example;
    if (kWeighted && dweights) dweights[i] = R(of_example * (double(o.scale) / 2));
  }
  const int64_t elements = o.n * classes;
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

template <bool kWeighted, class R>
R cross_entropy(const Outputs<R>& o, const Targets<R>& y, const R* z, R* d, R* row_sums, R* dweights) {
  const int64_t* target = static_cast<const int64_t*>(y.y);
  const int64_t classes = o.classes, ld = o.ld;
  int64_t counted = 0;
  double total = 0;
  for (int64_t i = 0; i < o.n; i++) {
    const R* row = z + i * ld;
    R largest = row[0];
    for (int64_t j = 1; j < classes; j++) largest = row[j] > largest ? row[j] : largest;
    R *p = o.probability + i * ld, *dr = d + i * ld;
    const R sum = softmax(row, classes, ld, largest, p), counts = weight_of(target[i], classes, o.scale);
    const R weight = kWeighted && target[i] != kIgnoreIndex ? counts * y.weights[i] : counts;
    for (int64_t v = 0; v < ld; v += kLanes<R>) store(dr + v, load(p + v) * weight);
    if (target[i] == kIgnoreIndex) {
      row_sums[i] = 1;  // its logarithm is 0
      if (kWeighted && dweights) dweights[i] = 0;
      continue;
    }
    counted++;
    row_sums[i] = kWeighted ? 1 : sum;
    if (counts != counts) {
      total = NAN;
      if (kWeighted && dweights) dweights[i] = NAN;
      continue;
    }
    dr[target[i]] = weight * (p[target[i]] - 1);
    const R beyond = largest - row[target[i]], loss = kWeighted ? beyond + log_approx(sum) : beyond;
    total += kWeighted ? double(y.weights[i]) * double(loss) : double(loss);
    if (kWeighted && dweights) dweights[i] = loss * o.scale;
  }
#pragma omp simd
  for (int64_t i = 0; i < o.n; i++) row_sums[i] = log_approx(row_sums[i]);
  for (int64_t i = 0; i < o.n; i++) total += double(row_sums[i]);
  return counted ? R(total / double(counted)) : R(0);
}

}  // namespace

template <class R>
R example_scale(Loss loss, int64_t classes, const void* y, int64_t n) {
  if (loss == Loss::mse) return n ? R(2) / R(n * classes) : R(0);
  int64_t counted = 0;
  for (int64_t i = 0; i < n; i++) counted += static_cast<const int64_t*>(y)[i] != kIgnoreIndex;
  return counted ? 1 / R(counted) : R(0);
}

template <class R>
R loss_of(const Outputs<R>& o, const Targets<R>& y, const R* z, R* d, R* row_sums, R* dweights) {
  if (o.loss == Loss::mse) return y.weights ? mse<true>(o, y, z, d, dweights) : mse<false>(o, y, z, d, dweights);
  return y.weights ? cross_entropy<true>(o, y, z, d, row_sums, dweights) : cross_entropy<false>(o, y, z, d, row_sums, dweights);
}

template <class R>
void loss_tangent(const Outputs<R>& o, const Targets<R>& y, const R* tangents, R* found) {
  const int64_t ld = o.ld;
  for (int64_t i = 0; i < o.n; i++) {
    const R *r = tangents + i * ld, *p = o.probability + i * ld;
    R* out = found + i * ld;
    const R scale = y.weights ? o.scale * y.weights[i] : o.scale;
    if (o.loss == Loss::mse) {
      for (int64_t v = 0; v < ld; v += kLanes<R>) store(out + v, load(r + v) * scale);
      continue;
    }
    const R weight = weight_of(static_cast<const int64_t*>(y.y)[i], o.classes, scale);
    Vector<R> sums = {};
    for (int64_t v = 0; v < ld; v += kLanes<R>) sums += load(p + v) * load(r + v);
    const R mean = sum_lanes<R>(sums);
    for (int64_t v = 0; v < ld; v += kLanes<R>) store(out + v, weight * load(p + v) * (load(r + v) - mean));
  }
}

template <class R>
void add_weight_tangents(const Outputs<R>& o, const Targets<R>& y, const R* z, const R* tangents, R* dweights) {
  for (int64_t i = 0; i < o.n; i++) {
    const R *r = tangents + i * o.ld, *values = (o.loss == Loss::mse ? z : o.probability) + i * o.ld;
    const int64_t label = o.loss == Loss::mse ? 0 : static_cast<const int64_t*>(y.y)[i];
    if (o.loss == Loss::cross_entropy && label == kIgnoreIndex) continue;
    const R scale = o.loss == Loss::mse ? o.scale : weight_of(label, o.classes, o.scale);
    R sum = 0;
    for (int64_t j = 0; j < o.classes; j++) {
      const R target = o.loss == Loss::mse ? static_cast<const R*>(y.y)[i * o.classes + j] : R(j == label);
      sum += (values[j] - target) * r[j];
    }
    dweights[i] += scale * sum;
  }
}

#define INSTANTIATE(R)                                                               \
  template R example_scale<R>(Loss, int64_t, const void*, int64_t);                  \
  template R loss_of<R>(const Outputs<R>&, const Targets<R>&, const R*, R*, R*, R*); \
  template void loss_tangent<R>(const Outputs<R>&, const Targets<R>&, const R*, R*); \
  template void add_weight_tangents<R>(const Outputs<R>&, const Targets<R>&, const R*, const R*, R*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
