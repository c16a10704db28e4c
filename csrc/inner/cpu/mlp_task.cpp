// See mlp_task.h.
#include "inner/cpu/mlp_task.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

// What a layer's inputs x and tangents or cotangents d add to the gradient of its W: d' x, or x' d where that is columns.
template <class R>
Product<R> outer(const Layer& a, const R* d, int64_t ldd, const R* x, int64_t ldx, int64_t n) {
  if (a.by_rows) return {{d, 1, ldd}, x, ldx, n};
  return {{x, 1, ldx}, d, ldd, n};
}

}  // namespace

template <class R>
Pass<R>::Pass(const MlpShape& shape, const Layout<R>& layout, int64_t examples, bool owns, bool second_order, Scratch& scratch) {
  const int L = shape.layers;
  const bool smooth = is_smooth(shape.activation);
  for (int l = 0; l <= L; l++) {
    const int64_t count = examples * layout.ld[l];
    const bool hidden = l > 0 && l < L;
    x[l] = l || owns ? scratch.take<R>(count) : nullptr;
    d[l] = l ? scratch.take<R>(count) : nullptr;
    slope[l] = hidden && smooth ? scratch.take<R>(count) : nullptr;
    bend[l] = hidden && smooth && second_order ? scratch.take<R>(count) : nullptr;
  }
  probability = shape.loss == Loss::cross_entropy ? scratch.take<R>(examples * layout.ld[L]) : nullptr;
}

template <class R>
void Pass<R>::load(const MlpShape& shape, const MlpExamples<R>& examples, int64_t t) {
  n = examples.count;
  inputs = load_inputs(shape, examples, t, x[0]);
}

template <class R>
Task<R>::Task(const MlpShape& shape_, const Layout<R>& layout_, int64_t examples, bool tangents, Scratch& scratch)
    : shape(shape_), layout(layout_), smooth(is_smooth(shape_.activation)) {
  for (int l = 0; l <= shape.layers; l++) {
    rx[l] = l && tangents ? scratch.take<R>(examples * layout.ld[l]) : nullptr;
    rd[l] = l && tangents ? scratch.take<R>(examples * layout.ld[l]) : nullptr;
  }
  row_sums = scratch.take<R>(padded<R>(examples));
}

template <class R>
void Task<R>::forward(const R* theta, Pass<R>& pass) const {
  for (int l = 0; l < shape.layers; l++) {
    const Layer& a = layout.layer[l];
    const int64_t ld = layout.ld[l], ldz = layout.ld[l + 1], n = pass.n;
    R* z = pass.x[l + 1];
    const R* bias = a.bias >= 0 ? theta + a.bias : nullptr;
    const bool relu = l + 1 < shape.layers && shape.activation == Activation::relu;
    const Target<R> target{z, ldz, bias, 0, relu ? End::relu : End::keep};
    if (a.dots) dots<R>(target, n, a.out, {{pass.input(l), theta + a.rows, ld, a.in}});
    else products<R>(target, n, a.out, {{{pass.input(l), ld, 1}, theta + a.columns, ldz, a.in}});
    if (smooth && l + 1 < shape.layers) activate(shape.activation, z, pass.slope[l + 1], pass.bend[l + 1], n * ldz);
  }
}

template <class R>
void Task<R>::backward(const R* theta, Pass<R>& pass, R* grad) const {
  const int64_t n = pass.n;
  for (int l = shape.layers - 1; l >= 0; l--) {
    const Layer& a = layout.layer[l];
    const int64_t ld = layout.ld[l], ldz = layout.ld[l + 1];
    const R* d = pass.d[l + 1];
    if (grad) {
      products<R>({grad + a.weight(), a.by_rows ? ld : ldz}, a.height(), a.width(), {outer(a, d, ldz, pass.input(l), ld, n)});
      if (a.bias >= 0) column_sums(d, ldz, n, a.out, grad + a.bias);
    }
    if (!l) break;
    const End end = shape.activation == Activation::relu ? End::gate : End::keep;
    products<R>({pass.d[l], ld, nullptr, 0, end, pass.x[l]}, n, a.in, {{{d, ldz, 1}, theta + a.rows, ld, a.out}});
    if (!smooth) continue;
    R* __restrict below = pass.d[l], * __restrict bend = pass.bend[l];
    const R* slope = pass.slope[l];
    for (int64_t i = 0; bend && i < n * ld; i++) bend[i] *= below[i];
    for (int64_t i = 0; i < n * ld; i++) below[i] *= slope[i];
  }
}

template <class R>
void Task<R>::add_gradient(const Layer& a, int l, const Pass<R>& pass, R* sum, bool gauss_newton) const {
  const int64_t ld = layout.ld[l], ldz = layout.ld[l + 1], ldw = a.by_rows ? ld : ldz, n = pass.n;
  R* w = sum + a.weight();
  const Target<R> target{w, ldw, w, ldw};
  const Product<R> first = outer<R>(a, rd[l + 1], ldz, pass.input(l), ld, n);
  if (l && !gauss_newton) products<R>(target, a.height(), a.width(), {first, outer<R>(a, pass.d[l + 1], ldz, rx[l], ld, n)});
  else products<R>(target, a.height(), a.width(), {first});
  if (a.bias >= 0) column_sums<R>(rd[l + 1], ldz, n, a.out, sum + a.bias, true);
}

// A smooth layer's tangents of z become those of x; rd begins with what comes of the activation's second derivative.
template <class R>
void Task<R>::bend_tangents(const Pass<R>& pass, int l, bool gauss_newton) const {
  R* __restrict tangent = rx[l], * __restrict bend = rd[l];
  const R *slope = pass.slope[l], *second = pass.bend[l];
  for (int64_t i = 0; i < pass.n * layout.ld[l]; i++) {
    bend[i] = gauss_newton ? R(0) : second[i] * tangent[i];
    tangent[i] *= slope[i];
  }
}

template <class R>
void Task<R>::tangents_forward(const R* theta, const R* v, const Pass<R>& pass, bool gauss_newton) const {
  const int L = shape.layers;
  const int64_t n = pass.n;
  const End end = shape.activation == Activation::relu ? End::gate : End::keep;
  for (int l = 0; l < L; l++) {
    const Layer& a = layout.layer[l];
    const int64_t ld = layout.ld[l], ldz = layout.ld[l + 1];
    const R* bias = a.bias >= 0 ? v + a.bias : nullptr;
    R* rz = rx[l + 1];
    const Target<R> target{rz, ldz, bias, 0, l + 1 < L ? end : End::keep, pass.x[l + 1]};
    if (a.dots) {
      const Dot<R> first{pass.input(l), v + a.rows, ld, a.in};
      if (l) dots<R>(target, n, a.out, {first, {rx[l], theta + a.rows, ld, a.in}});
      else dots<R>(target, n, a.out, {first});
    } else {
      const Product<R> first{{pass.input(l), ld, 1}, v + a.columns, ldz, a.in};
      if (l) products<R>(target, n, a.out, {first, {{rx[l], ld, 1}, theta + a.columns, ldz, a.in}});
      else products<R>(target, n, a.out, {first});
    }
    if (smooth && l + 1 < L) bend_tangents(pass, l + 1, gauss_newton);
  }
}

template <class R>
void Task<R>::curvature(const R* theta, const R* v, const Pass<R>& pass, const void* y, R dloss, bool gauss_newton, R* sum) const {
  const int L = shape.layers;
  const int64_t n = pass.n;
  const End end = shape.activation == Activation::relu ? End::gate : End::keep;
  tangents_forward(theta, v, pass, gauss_newton);
  output_tangent(pass, y);
  for (int64_t i = 0; dloss != 0 && i < n * layout.ld[L]; i++) rd[L][i] += dloss * pass.d[L][i];
  for (int l = L - 1; l >= 0; l--) {
    const Layer& a = layout.layer[l];
    const int64_t ld = layout.ld[l], ldz = layout.ld[l + 1];
    add_gradient(a, l, pass, sum, gauss_newton);
    if (!l) break;
    const Product<R> first{{rd[l + 1], ldz, 1}, theta + a.rows, ld, a.out}, second{{pass.d[l + 1], ldz, 1}, v + a.rows, ld, a.out};
    R* through = smooth ? rx[l] : rd[l];  // rx[l] has been used
    const Target<R> target{through, ld, nullptr, 0, end, pass.x[l]};
    if (gauss_newton) products<R>(target, n, a.in, {first});
    else products<R>(target, n, a.in, {first, second});
    const R* slope = pass.slope[l];
    for (int64_t i = 0; smooth && i < n * ld; i++) rd[l][i] += slope[i] * through[i];
  }
}

template <class R>
void Task<R>::input_gradient(const R* theta, const Pass<R>& pass, R* dx) const {
  const Layer& a = layout.layer[0];
  products<R>({dx, layout.ld[0]}, pass.n, a.in, {{{pass.d[1], layout.ld[1], 1}, theta + a.rows, layout.ld[0], a.out}});
}

template <class R>
void Task<R>::input_tangent(const R* theta, const R* v, const Pass<R>& pass, R* dx) const {
  const Layer& a = layout.layer[0];
  const int64_t ld = layout.ld[0], ldz = layout.ld[1];
  products<R>({dx, ld, dx, ld}, pass.n, a.in, {{{rd[1], ldz, 1}, theta + a.rows, ld, a.out}, {{pass.d[1], ldz, 1}, v + a.rows, ld, a.out}});
}

template struct Pass<float>;
template struct Pass<double>;
template struct Task<float>;
template struct Task<double>;

}  // namespace fastmeta::FASTMETA_ISA
