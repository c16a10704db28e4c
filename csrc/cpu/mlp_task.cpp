// See mlp_task.h.
#include "mlp_task.h"

#include <cmath>

namespace fastmeta::FASTMETA_ISA {
namespace {

// Every row of `source` [rows, columns] into `target` with rows of `stride`, padding zeroed.
template <class R>
void copy_padded(R* target, int64_t stride, const R* source, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < columns; j++) target[i * stride + j] = source[i * columns + j];
    for (int64_t j = columns; j < stride; j++) target[i * stride + j] = 0;
  }
}

template <class R>
void transpose_padded(R* target, int64_t stride, const R* source, int64_t source_stride, int64_t rows, int64_t columns) {
  for (int64_t j = 0; j < columns; j++) {
    for (int64_t i = 0; i < rows; i++) target[j * stride + i] = source[i * source_stride + j];
    for (int64_t i = rows; i < stride; i++) target[j * stride + i] = 0;
  }
}

template <class R>
void store_rows(R* out, const R* rows, int64_t stride, int64_t count, int64_t columns, R scale, bool add) {
  for (int64_t i = 0; i < count; i++)
    for (int64_t j = 0; j < columns; j++) {
      const R value = scale * rows[i * stride + j];
      out[i * columns + j] = add ? out[i * columns + j] + value : value;
    }
}

// b = the sum of the rows of d
template <class R>
void column_sums(R* b, const R* d, int64_t stride, int64_t rows) {
  for (int64_t j = 0; j < stride; j++) b[j] = 0;
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < stride; j++) b[j] += d[i * stride + j];
}

// tanh: near 0 a rational function of Cephes, else by e^{-2|x|}
template <class R>
FASTMETA_INLINE R tanh_approx(R x) {
  const R magnitude = x < 0 ? -x : x, z = x * x;
  const R p = (R(-9.64399179425052238628e-1) * z - R(9.92877231001918586564e1)) * z - R(1.61468768441708447952e3);
  const R q = ((z + R(1.12811678491632931402e2)) * z + R(2.23548839060100448583e3)) * z + R(4.84406305325125486048e3);
  const R small = x + x * z * (p / q);
  const R decay = exp_approx(R(-2) * magnitude);
  const R large = (1 - decay) / (1 + decay);
  return magnitude < R(0.625) ? small : (x < 0 ? -large : large);
}

// z (in a) -> activation, its slope and, where asked for, its second derivative
template <class R>
void activate(Activation kind, R* __restrict a, R* __restrict slope, R* __restrict slope2, int64_t count) {
  if (kind == Activation::relu) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
      slope[i] = a[i] > 0 ? R(1) : R(0);
      a[i] = a[i] < 0 ? R(0) : a[i];  // NaN stays NaN
    }
  } else if (kind == Activation::tanh) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
      a[i] = tanh_approx(a[i]);
      slope[i] = 1 - a[i] * a[i];
    }
    for (int64_t i = 0; slope2 && i < count; i++) slope2[i] = -2 * a[i] * slope[i];
  } else if (kind == Activation::sigmoid) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
      a[i] = 1 / (1 + exp_approx(-a[i]));
      slope[i] = a[i] * (1 - a[i]);
    }
    for (int64_t i = 0; slope2 && i < count; i++) slope2[i] = slope[i] * (1 - 2 * a[i]);
  } else if (kind == Activation::gelu) {
    for (int64_t i = 0; i < count; i++) {
      const R z = a[i], below = R(0.5) * (1 + std::erf(z * R(0.70710678118654752440)));
      const R density = std::exp(R(-0.5) * z * z) * R(0.39894228040143267794);
      a[i] = z * below;
      slope[i] = below + z * density;
      if (slope2) slope2[i] = density * (2 - z * z);
    }
  } else {
    for (int64_t i = 0; i < count; i++) slope[i] = 1;
  }
}

}  // namespace

template <class R>
Matrices<R> take_matrices(const MlpShape& s, const int64_t* ld, bool transposed, Scratch& scratch) {
  Matrices<R> m{};
  for (int l = 0; l < s.layers; l++) {
    m.w[l] = scratch.take<R>(s.width[l + 1] * ld[l]);
    m.wt[l] = transposed ? scratch.take<R>(s.width[l] * ld[l + 1]) : nullptr;
    m.b[l] = scratch.take<R>(ld[l + 1]);
  }
  return m;
}

template <class R>
Task<R>::Task(const MlpShape& shape, int64_t examples, bool second_order, int64_t kept_count, Scratch& scratch) : s(shape) {
  for (int l = 0; l <= s.layers; l++) ld[l] = padded<R>(s.width[l]);
  theta = take_matrices<R>(s, ld, true, scratch);
  grad = take_matrices<R>(s, ld, false, scratch);
  if (second_order) {
    vec = take_matrices<R>(s, ld, true, scratch);
    hv = take_matrices<R>(s, ld, false, scratch);
    cotangent = take_matrices<R>(s, ld, false, scratch);
  }
  for (int l = 0; l <= s.layers; l++) {
    const int64_t count = examples * ld[l];
    const bool hidden = l > 0 && l < s.layers;
    a[l] = scratch.take<R>(count);
    d[l] = l ? scratch.take<R>(count) : nullptr;
    slope[l] = hidden ? scratch.take<R>(count) : nullptr;
    slope2[l] = hidden && second_order && smooth() ? scratch.take<R>(count) : nullptr;
    bend[l] = hidden && second_order && smooth() ? scratch.take<R>(count) : nullptr;
    rz[l] = l && second_order ? scratch.take<R>(count) : nullptr;
    ra[l] = hidden && second_order ? scratch.take<R>(count) : nullptr;
    rd[l] = l && second_order ? scratch.take<R>(count) : nullptr;
  }
  probability = scratch.take<R>(examples * ld[s.layers]);
  input_gradient = scratch.take<R>(examples * ld[0]);
  kept = scratch.take<R>(kept_count);
}

template <class R>
void Task<R>::load_matrices(Matrices<R>& m, const MlpParams<const R>& params, int64_t task, bool is_theta) {
  for (int l = 0; l < s.layers; l++) {
    const int64_t rows = s.width[l + 1], columns = s.width[l];
    copy_padded(m.w[l], ld[l], params.weight[l] + task * params.weight_stride[l], rows, columns);
    if (is_theta) has_bias[l] = params.bias[l];
    if (params.bias[l]) copy_padded(m.b[l], ld[l + 1], params.bias[l] + task * params.bias_stride[l], 1, rows);
    else for (int64_t i = 0; i < ld[l + 1]; i++) m.b[l][i] = 0;
  }
  refresh(m);
}

template <class R>
void Task<R>::refresh(Matrices<R>& m) const {
  for (int l = 0; m.wt[0] && l < s.layers; l++)
    transpose_padded(m.wt[l], ld[l + 1], m.w[l], ld[l], s.width[l + 1], s.width[l]);
}

template <class R>
void Task<R>::load_params(const MlpParams<const R>& params, int64_t task) {
  load_matrices(theta, params, task, true);
}

template <class R>
void Task<R>::load_vectors(const MlpParams<const R>& vectors, int64_t task) {
  load_matrices(vec, vectors, task, false);
}

template <class R>
void Task<R>::load_cotangent(const MlpParams<const R>& source, int64_t task) {
  load_matrices(cotangent, source, task, false);
}

template <class R>
void Task<R>::take_cotangent() {
  const Matrices<R> taken = grad;
  grad = cotangent;
  cotangent = taken;
}

template <class R>
void Task<R>::load_flat(const R* flat) {
  MlpParams<const R> params;
  for (int l = 0; l < s.layers; l++) {
    params.weight[l] = flat;
    flat += s.width[l + 1] * s.width[l];
    params.bias[l] = has_bias[l] ? flat : nullptr;
    flat += has_bias[l] ? s.width[l + 1] : 0;
  }
  load_matrices(theta, params, 0, true);
}

template <class R>
void Task<R>::store_flat(R* flat) const {
  for_each_row(*this, [&](int tensor, int l, int64_t from, int64_t, int64_t columns) {
    const R* row = (tensor % 2 ? theta.b[l] : theta.w[l]) + from;
    for (int64_t j = 0; j < columns; j++) *flat++ = row[j];
  });
}

template <class R>
void Task<R>::load_inputs(const R* x, int64_t count) {
  n = count;
  copy_padded(a[0], ld[0], x, n, in());
}

template <class R>
void Task<R>::forward() {
  for (int l = 0; l < s.layers; l++) {
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < ld[l + 1]; j++) a[l + 1][i * ld[l + 1] + j] = theta.b[l][j];
    matmul<R>(a[l + 1], ld[l + 1], {a[l], ld[l], 1}, theta.wt[l], ld[l + 1], n, ld[l + 1], s.width[l], true);
    if (l + 1 < s.layers) activate(s.activation, a[l + 1], slope[l + 1], slope2[l + 1], n * ld[l + 1]);
  }
}

template <class R>
R Task<R>::output_gradient(const void* y) {
  const int64_t classes = out(), stride = ld[s.layers];
  const R* z = a[s.layers];
  R* dz = d[s.layers];
  double total = 0;
  if (s.loss == Loss::mse) {
    const R* target = static_cast<const R*>(y);
    const int64_t elements = n * classes;
    const R scale = elements > 0 ? R(2) / R(elements) : R(0);
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < classes; j++) {
        const R difference = z[i * stride + j] - target[i * classes + j];
        dz[i * stride + j] = scale * difference;
        total += double(difference) * difference;
      }
    return elements > 0 ? R(total / double(elements)) : R(0);
  }
  const int64_t* target = static_cast<const int64_t*>(y);
  counted = 0;
  for (int64_t i = 0; i < n; i++) counted += target[i] != kIgnoreIndex;
  const R scale = counted ? 1 / R(counted) : R(0);
  for (int64_t i = 0; i < n; i++) {
    const R* row = z + i * stride;
    R *p = probability + i * stride, *dr = dz + i * stride;
    R largest = row[0], sum = 0;
    for (int64_t j = 1; j < classes; j++) largest = row[j] > largest ? row[j] : largest;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < classes; j++) {
      p[j] = exp_approx(row[j] - largest);
      sum += p[j];
    }
    const bool counts = target[i] != kIgnoreIndex, valid = target[i] >= 0 && target[i] < classes;
    const R factor = !counts ? R(0) : valid ? scale : R(NAN);
    for (int64_t j = 0; j < classes; j++) {
      p[j] /= sum;
      dr[j] = counts ? factor * p[j] : R(0);
    }
    if (valid) {
      dr[target[i]] = factor * (p[target[i]] - 1);
      total += double(largest - row[target[i]]) + std::log(double(sum));
    } else if (counts) {
      total = NAN;
    }
  }
  return counted ? R(total / double(counted)) : R(0);
}

template <class R>
void Task<R>::set_output_gradient(const R* dout) {
  copy_padded(d[s.layers], ld[s.layers], dout, n, out());
}

template <class R>
void Task<R>::backward() {
  for (int l = s.layers - 1; l >= 0; l--) {
    matmul<R>(grad.w[l], ld[l], {d[l + 1], 1, ld[l + 1]}, a[l], ld[l], s.width[l + 1], ld[l], n, false);
    if (has_bias[l]) column_sums(grad.b[l], d[l + 1], ld[l + 1], n);
    if (!l) break;
    matmul<R>(d[l], ld[l], {d[l + 1], ld[l + 1], 1}, theta.w[l], ld[l], n, ld[l], s.width[l + 1], false);
    if (bend[l])
      for (int64_t i = 0; i < n * ld[l]; i++) bend[l][i] = d[l][i] * slope2[l][i];
    for (int64_t i = 0; i < n * ld[l]; i++) d[l][i] *= slope[l][i];
  }
}

template <class R>
void Task<R>::curvature(const void* y, bool gauss_newton) {
  const int L = s.layers;
  for (int l = 0; l < L; l++) {  // tangents forward
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < ld[l + 1]; j++) rz[l + 1][i * ld[l + 1] + j] = vec.b[l][j];
    matmul<R>(rz[l + 1], ld[l + 1], {a[l], ld[l], 1}, vec.wt[l], ld[l + 1], n, ld[l + 1], s.width[l], true);
    if (l) matmul<R>(rz[l + 1], ld[l + 1], {ra[l], ld[l], 1}, theta.wt[l], ld[l + 1], n, ld[l + 1], s.width[l], true);
    for (int64_t i = 0; l + 1 < L && i < n * ld[l + 1]; i++) ra[l + 1][i] = slope[l + 1][i] * rz[l + 1][i];
  }
  const int64_t classes = out(), stride = ld[L];
  for (int64_t i = 0; i < n; i++) {
    const R *r = rz[L] + i * stride, *p = probability + i * stride;
    R* out_row = rd[L] + i * stride;
    R factor = R(2) / R(n * classes), mean = 0;
    if (s.loss == Loss::mse) {
      for (int64_t j = 0; j < classes; j++) out_row[j] = factor * r[j];
      continue;
    }
    const int64_t target = static_cast<const int64_t*>(y)[i];
    factor = target == kIgnoreIndex ? R(0) : target >= 0 && target < classes ? 1 / R(counted) : R(NAN);
    for (int64_t j = 0; j < classes; j++) mean += p[j] * r[j];
    for (int64_t j = 0; j < classes; j++) out_row[j] = factor == 0 ? R(0) : factor * p[j] * (r[j] - mean);
  }
  for (int l = L - 1; l >= 0; l--) {  // tangents backward
    const int64_t rows = s.width[l + 1];
    matmul<R>(hv.w[l], ld[l], {rd[l + 1], 1, ld[l + 1]}, a[l], ld[l], rows, ld[l], n, false);
    if (l && !gauss_newton) matmul<R>(hv.w[l], ld[l], {d[l + 1], 1, ld[l + 1]}, ra[l], ld[l], rows, ld[l], n, true);
    if (has_bias[l]) column_sums(hv.b[l], rd[l + 1], ld[l + 1], n);
    if (!l) break;
    matmul<R>(rd[l], ld[l], {rd[l + 1], ld[l + 1], 1}, theta.w[l], ld[l], n, ld[l], rows, false);
    if (!gauss_newton) matmul<R>(rd[l], ld[l], {d[l + 1], ld[l + 1], 1}, vec.w[l], ld[l], n, ld[l], rows, true);
    for (int64_t i = 0; i < n * ld[l]; i++) rd[l][i] *= slope[l][i];
    for (int64_t i = 0; bend[l] && !gauss_newton && i < n * ld[l]; i++) rd[l][i] += bend[l][i] * rz[l][i];
  }
}

template <class R>
void Task<R>::store_dx(R* out, R scale, bool add) {
  matmul<R>(input_gradient, ld[0], {d[1], ld[1], 1}, theta.w[0], ld[0], n, ld[0], s.width[1], false);
  store_rows(out, input_gradient, ld[0], n, in(), scale, add);
}

template <class R>
void Task<R>::store_rdx(R* out, R scale, bool add) {
  matmul<R>(input_gradient, ld[0], {rd[1], ld[1], 1}, theta.w[0], ld[0], n, ld[0], s.width[1], false);
  matmul<R>(input_gradient, ld[0], {d[1], ld[1], 1}, vec.w[0], ld[0], n, ld[0], s.width[1], true);
  store_rows(out, input_gradient, ld[0], n, in(), scale, add);
}

template <class R>
void Task<R>::store_dy(R* out_, R scale, bool add) const {
  store_rows(out_, d[s.layers], ld[s.layers], n, out(), -scale, add);
}

template <class R>
void Task<R>::store_rdy(R* out_, R scale, bool add) const {
  store_rows(out_, rd[s.layers], ld[s.layers], n, out(), -scale, add);
}

template <class R>
void Task<R>::store_outputs(R* out_) const {
  store_rows(out_, a[s.layers], ld[s.layers], n, out(), R(1), false);
}

template struct Task<float>;
template struct Task<double>;
template Matrices<float> take_matrices<float>(const MlpShape&, const int64_t*, bool, Scratch&);
template Matrices<double> take_matrices<double>(const MlpShape&, const int64_t*, bool, Scratch&);

}  // namespace fastmeta::FASTMETA_ISA
