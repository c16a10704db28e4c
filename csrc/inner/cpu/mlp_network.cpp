// See mlp_network.h.
#include "inner/cpu/mlp_network.h"

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
MlpPass<R>::MlpPass(const MlpNetwork<R>& network, int64_t examples, bool owns, bool second_order, Scratch& scratch)
    : last(network.shape.layers) {
  const MlpShape& shape = network.shape;
  const bool sloped = is_sloped(shape.activation);
  for (int l = 0; l <= last; l++) {
    const int64_t count = examples * network.layout.ld[l];
    const bool hidden = l > 0 && l < last;
    x[l] = l || owns ? scratch.take<R>(count) : nullptr;
    d[l] = l ? scratch.take<R>(count) : nullptr;
    slope[l] = hidden && sloped ? scratch.take<R>(count) : nullptr;
    bend[l] = hidden && bends(shape.activation) && second_order ? scratch.take<R>(count) : nullptr;
  }
  probability = shape.loss == Loss::cross_entropy ? scratch.take<R>(examples * network.layout.ld[last]) : nullptr;
  if (!shape.residual_norm) return;
  normed = scratch.take<R>(examples * network.layout.ld[last]), dnormed = scratch.take<R>(examples * network.layout.ld[last]);
  r = scratch.take<R>(padded<R>(examples));
}

template <class R>
void MlpPass<R>::load(const MlpNetwork<R>& network, const R* from, int64_t count) {
  const int64_t in = network.shape.width[0], ld = network.layout.ld[0];
  n = count, inputs = in == ld ? from : x[0];
  if (in != ld) load_rows(from, n, in, x[0], ld);
}

template <class R>
ResidualNorm<R> MlpPass<R>::norm(const MlpNetwork<R>& network) const {
  return {network.shape.output_size(), network.layout.ld[last], x[last], r, network.rx[last], network.rr};
}

template <class R>
MlpNetwork<R>::MlpNetwork(const MlpLayout<R>& layout_, int64_t examples, int64_t tangents, Scratch& scratch)
    : shape(layout_.shape), layout(layout_), sloped(is_sloped(layout_.shape.activation)) {
  for (int l = 0; l <= shape.layers; l++) {
    rx[l] = l && tangents ? scratch.take<R>(tangents * layout.ld[l]) : nullptr;
    rd[l] = l && tangents ? scratch.take<R>(tangents * layout.ld[l]) : nullptr;
  }
  if (shape.residual_norm && tangents) {
    const int64_t count = tangents * layout.ld[shape.layers];
    rnormed = scratch.take<R>(count), rdnormed = scratch.take<R>(count), rr = scratch.take<R>(padded<R>(tangents));
  }
  row_sums = scratch.take<R>(padded<R>(examples));
  const bool as_they_are = shape.width[0] == layout.ld[0];
  dinputs = layout.input_gradients && !as_they_are ? scratch.take<R>(examples * layout.ld[0]) : nullptr;
}

template <class R>
void MlpNetwork<R>::forward(const R* theta, MlpPass<R>& pass) const {
  for (int l = 0; l < shape.layers; l++) {
    const Layer& a = layout.layer[l];
    const int64_t ld = layout.ld[l], ldz = layout.ld[l + 1], n = pass.n;
    R* z = pass.x[l + 1];
    const R* bias = a.bias >= 0 ? theta + a.bias : nullptr;
    const bool relu = l + 1 < shape.layers && shape.activation == Activation::relu;
    const Destination<R> destination{z, ldz, bias, 0, relu ? Epilogue::relu : Epilogue::keep};
    if (a.dots) dots<R>(destination, n, a.out, {{pass.input(l), theta + a.rows, ld, a.in}});
    else products<R>(destination, n, a.out, {{{pass.input(l), ld, 1}, theta + a.columns, ldz, a.in}});
    if (sloped && l + 1 < shape.layers) activate(shape.activation, z, pass.slope[l + 1], pass.bend[l + 1], n * ldz);
  }
  if (!shape.residual_norm) return;
  const R* beta = layout.beta >= 0 ? theta + layout.beta : nullptr;
  pass.norm(*this).forward(pass.inputs, theta + layout.gamma, beta, pass.n, pass.normed);
}

// dx += d, the adjoint of a residual block's outputs.
template <class R>
void MlpNetwork<R>::add_residual(const R* d, int64_t n, R* dx) const {
  const int64_t width = shape.output_size(), ld = layout.ld[shape.layers];
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < width; j++) dx[i * width + j] += d[i * ld + j];
}

template <class R>
template <int count>
void MlpNetwork<R>::add_input_gradient(const MlpPass<R>& pass, const Product<R> (&list)[count], R* dx) const {
  const int64_t n = pass.n, in = shape.width[0], ld = layout.ld[0];
  if (!dinputs) return products<R>({dx, ld, dx, ld}, n, in, list);
  products<R>({dinputs, ld}, n, in, list);
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < in; j++) dx[i * in + j] += dinputs[i * ld + j];
}

template <class R>
void MlpNetwork<R>::backward(const R* theta, MlpPass<R>& pass, R* grad, R* dx) const {
  const int64_t n = pass.n;
  if (shape.residual_norm) {
    R *dgamma = grad ? grad + layout.gamma : nullptr, *dbeta = grad && layout.beta >= 0 ? grad + layout.beta : nullptr;
    pass.norm(*this).backward(pass.dnormed, theta + layout.gamma, n, pass.d[shape.layers], dgamma, dbeta);
    if (dx) add_residual(pass.dnormed, n, dx);
  }
  for (int l = shape.layers - 1; l >= 0; l--) {
    const Layer& a = layout.layer[l];
    const int64_t ld = layout.ld[l], ldz = layout.ld[l + 1];
    const R* d = pass.d[l + 1];
    if (grad) {
      products<R>({grad + a.weight(), a.by_rows ? ld : ldz}, a.height(), a.width(), {outer(a, d, ldz, pass.input(l), ld, n)});
      if (a.bias >= 0) column_sums(d, ldz, n, a.out, grad + a.bias);
    }
    if (!l) break;
    const Epilogue epilogue = shape.activation == Activation::relu ? Epilogue::gate : Epilogue::keep;
    products<R>({pass.d[l], ld, nullptr, 0, epilogue, pass.x[l]}, n, a.in, {{{d, ldz, 1}, theta + a.rows, ld, a.out}});
    if (!sloped) continue;
    R* __restrict below = pass.d[l], * __restrict bend = pass.bend[l];
    const R* slope = pass.slope[l];
    for (int64_t i = 0; bend && i < n * ld; i++) bend[i] *= below[i];
    for (int64_t i = 0; i < n * ld; i++) below[i] *= slope[i];
  }
  const Layer& first = layout.layer[0];
  if (dx) add_input_gradient(pass, {{{pass.d[1], layout.ld[1], 1}, theta + first.rows, layout.ld[0], first.out}}, dx);
}

template <class R>
void MlpNetwork<R>::add_gradient(const Layer& a, int l, const MlpPass<R>& pass, R* sum, bool gauss_newton) const {
  const int64_t ld = layout.ld[l], ldz = layout.ld[l + 1], ldw = a.by_rows ? ld : ldz, n = pass.n;
  R* w = sum + a.weight();
  const Destination<R> destination{w, ldw, w, ldw};
  const Product<R> first = outer<R>(a, rd[l + 1], ldz, pass.input(l), ld, n);
  if (l && !gauss_newton) products<R>(destination, a.height(), a.width(), {first, outer<R>(a, pass.d[l + 1], ldz, rx[l], ld, n)});
  else products<R>(destination, a.height(), a.width(), {first});
  if (a.bias >= 0) column_sums<R>(rd[l + 1], ldz, n, a.out, sum + a.bias, true);
}

// A sloped layer's tangents of z become those of x; rd begins with what comes of the activation's second derivative.
template <class R>
void MlpNetwork<R>::bend_tangents(const MlpPass<R>& pass, int l, bool gauss_newton) const {
  R* __restrict tangent = rx[l], * __restrict bend = rd[l];
  const R *slope = pass.slope[l], *second = pass.bend[l];
  for (int64_t i = 0; i < pass.n * layout.ld[l]; i++) {
    bend[i] = gauss_newton || !second ? R(0) : second[i] * tangent[i];
    tangent[i] *= slope[i];
  }
}

template <class R>
void MlpNetwork<R>::tangents_forward(const R* theta, const R* v, const MlpPass<R>& pass, bool gauss_newton) const {
  const int L = shape.layers;
  const int64_t n = pass.n;
  const Epilogue epilogue = shape.activation == Activation::relu ? Epilogue::gate : Epilogue::keep;
  for (int l = 0; l < L; l++) {
    const Layer& a = layout.layer[l];
    const int64_t ld = layout.ld[l], ldz = layout.ld[l + 1];
    const R* bias = a.bias >= 0 ? v + a.bias : nullptr;
    R* rz = rx[l + 1];
    const Destination<R> destination{rz, ldz, bias, 0, l + 1 < L ? epilogue : Epilogue::keep, pass.x[l + 1]};
    if (a.dots) {
      const Dot<R> first{pass.input(l), v + a.rows, ld, a.in};
      if (l) dots<R>(destination, n, a.out, {first, {rx[l], theta + a.rows, ld, a.in}});
      else dots<R>(destination, n, a.out, {first});
    } else {
      const Product<R> first{{pass.input(l), ld, 1}, v + a.columns, ldz, a.in};
      if (l) products<R>(destination, n, a.out, {first, {{rx[l], ld, 1}, theta + a.columns, ldz, a.in}});
      else products<R>(destination, n, a.out, {first});
    }
    if (sloped && l + 1 < L) bend_tangents(pass, l + 1, gauss_newton);
  }
  if (!shape.residual_norm) return;
  pass.norm(*this).tangents(theta + layout.gamma, v + layout.gamma, layout.beta >= 0 ? v + layout.beta : nullptr, n, rnormed);
}

template <class R>
void MlpNetwork<R>::reverse_tangents(const R* theta, const R* v, const MlpPass<R>& pass, bool gauss_newton, R* sum) const {
  const int64_t n = pass.n;
  if (shape.residual_norm) {
    const int L = shape.layers;
    const R *d = gauss_newton ? nullptr : pass.dnormed, *dz = gauss_newton ? nullptr : pass.d[L];
    R* dbeta = layout.beta >= 0 ? sum + layout.beta : nullptr;
    pass.norm(*this).adjoint_tangents(rdnormed, d, dz, theta + layout.gamma, v + layout.gamma, n, rd[L], sum + layout.gamma, dbeta);
  }
  const Epilogue epilogue = shape.activation == Activation::relu ? Epilogue::gate : Epilogue::keep;
  for (int l = shape.layers - 1; l >= 0; l--) {
    const Layer& a = layout.layer[l];
    const int64_t ld = layout.ld[l], ldz = layout.ld[l + 1];
    add_gradient(a, l, pass, sum, gauss_newton);
    if (!l) break;
    const Product<R> first{{rd[l + 1], ldz, 1}, theta + a.rows, ld, a.out}, second{{pass.d[l + 1], ldz, 1}, v + a.rows, ld, a.out};
    R* through = sloped ? rx[l] : rd[l];  // rx[l] has been used
    const Destination<R> destination{through, ld, nullptr, 0, epilogue, pass.x[l]};
    if (gauss_newton) products<R>(destination, n, a.in, {first});
    else products<R>(destination, n, a.in, {first, second});
    const R* slope = pass.slope[l];
    for (int64_t i = 0; sloped && i < n * ld; i++) rd[l][i] += slope[i] * through[i];
  }
}

template <class R>
void MlpNetwork<R>::curvature(const R* theta, const R* v, const MlpPass<R>& pass, const Targets<R>& y, R dloss, R* sum, R* dx) const {
  const int L = shape.layers;
  tangents_forward(theta, v, pass, false);
  output_tangent(pass, y);
  R* through = rnormed ? rdnormed : rd[L];
  for (int64_t i = 0; dloss != 0 && i < pass.n * layout.ld[L]; i++) through[i] += dloss * pass.doutputs()[i];
  reverse_tangents(theta, v, pass, false, sum);
  const Layer& a = layout.layer[0];
  const int64_t ld = layout.ld[0], ldz = layout.ld[1];
  if (dx) add_input_gradient(pass, {{{rd[1], ldz, 1}, theta + a.rows, ld, a.out}, {{pass.d[1], ldz, 1}, v + a.rows, ld, a.out}}, dx);
  if (dx && rnormed) add_residual(rdnormed, pass.n, dx);
}

template <class R>
void MlpNetwork<R>::gauss_newton(const R* theta, const R* v, const MlpPass<R>& pass, const Targets<R>& y, R* product) const {
  std::memset(product, 0, size_t(layout.gradient) * sizeof(R));
  tangents_forward(theta, v, pass, true);
  output_tangent(pass, y);
  reverse_tangents(theta, v, pass, true, product);
}

template struct MlpPass<float>;
template struct MlpPass<double>;
template struct MlpNetwork<float>;
template struct MlpNetwork<double>;

}  // namespace fastmeta::FASTMETA_ISA
