// See conv_network.h.
#include "inner/cpu/conv_network.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
R* zeros(int64_t count, Scratch& scratch) {
  R* found = scratch.take<R>(count);
  if (found) std::memset(found, 0, size_t(count) * sizeof(R));
  return found;
}

}  // namespace

template <class R>
ConvPass<R>::ConvPass(const ConvNetwork<R>& network, int64_t examples, bool owns, bool, Scratch& scratch) : n(examples) {
  const ConvLayout<R>& layout = network.layout;
  const int L = layout.net.blocks;
  for (int l = 0; l < L; l++) {
    const BlockShape<R>& shape = network.shapes[size_t(l)];
    x[l] = l || owns ? zeros<R>(n * shape.x_size, scratch) : nullptr;
    z[l] = scratch.take<R>(n * shape.z_size);
    d[l] = scratch.take<R>(n * shape.dense_size), top[l] = scratch.take<R>(n * shape.dense_size);
    for (int64_t i = 0; i < sets(layout.net.block[l], n); i++) norms[l].emplace_back(layout.block[l].out, scratch);
  }
  x[L] = zeros<R>(n * layout.last, scratch);
  features = layout.net.by_mean ? scratch.take<R>(n * layout.features) : x[L];
  logits = scratch.take<R>(n * layout.outputs), dlogits = scratch.take<R>(n * layout.outputs);
  probability = scratch.take<R>(n * layout.outputs);
}

template <class R>
void ConvPass<R>::load(const ConvNetwork<R>& network, const R* images, int64_t count) {
  const BlockShape<R>& shape = network.shapes[0];
  const int64_t size = network.layout.net.example_size();
  n = count;
  for (int64_t i = 0; i < n; i++) shape.load(network.layout.net.block[0], images + i * size, x[0] + i * shape.x_size);
}

template <class R>
ConvNetwork<R>::ConvNetwork(const ConvLayout<R>& layout_, int64_t examples, int64_t with_tangents, Scratch& scratch) : layout(layout_) {
  const int L = layout.net.blocks;
  const int64_t n = with_tangents;
  for (int l = 0; l < L; l++) {
    shapes.emplace_back(layout, l);
    const BlockShape<R>& shape = shapes.back();
    const int64_t images = whole(l) ? examples : 1;
    dz[l] = scratch.take<R>(images * shape.z_size);
    rdz[l] = n ? scratch.take<R>(images * shape.z_size) : nullptr;
    rx[l] = n && l ? zeros<R>(n * shape.x_size, scratch) : nullptr;
    rz[l] = n ? scratch.take<R>(n * shape.z_size) : nullptr;
    rd[l] = n ? scratch.take<R>(n * shape.dense_size) : nullptr;
    for (int64_t i = 0; n && i < sets(layout.net.block[l], n); i++) tangents[l].emplace_back(layout.block[l].out, scratch);
  }
  rx[L] = n ? zeros<R>(n * layout.last, scratch) : nullptr;
  rfeatures = n && layout.net.by_mean ? scratch.take<R>(n * layout.features) : rx[L];
  dfeatures = layout.net.by_mean ? scratch.take<R>(examples * layout.features) : nullptr;
  routputs = scratch.take<R>(n * layout.outputs), rdoutputs = scratch.take<R>(n * layout.outputs);
  row_sums = scratch.take<R>(padded<R>(examples));
  dimage = layout.block[0].flipped < 0 ? nullptr : scratch.take<R>((whole(0) ? examples : 1) * layout.dimage_size());
}

template <class R>
void ConvNetwork<R>::forward(const R* theta, const ConvPass<R>& pass) const {
  const int L = layout.net.blocks;
  for (int l = 0; l < L; l++) {
    const BlockShape<R>& s = shapes[size_t(l)];
    const bool own = layout.net.block[l].norm == ConvNorm::group;
    const int64_t out = layout.block[l].out;
    if (whole(l))
      products<R>({pass.z[l], out, bias_of(theta, l)}, pass.n, out, {{{pass.x[l], s.x_size, 1}, of(theta, l, kWeight), out, s.x_size}});
    for (int64_t i = 0; i < pass.n; i++) {
      R* z = pass.z[l] + i * s.z_size;
      if (!whole(l)) convolve<R>(s.forward, {{pass.x[l] + i * s.x_size, of(theta, l, kWeight)}}, bias_of(theta, l), z);
      if (has_norm(l)) add_statistics(s.image, z, own ? 0 : i, pass.norm(l, i));
    }
    // Batch norm needs all images before the first goes on.
    for (const Norm<R>& norm : pass.norms[l])
      finish_statistics(layout.net.block[l], pixels(l, pass), of(theta, l, kGamma), of(theta, l, kBeta), lost_bias_of(theta, l), norm);
    for (int64_t i = 0; i < pass.n; i++)
      forward_image(s.image, pass.z[l] + i * s.z_size, pass.norm(l, i), pass.x[l + 1] + i * s.out_size + s.out_first,
                    pass.top[l] + i * s.dense_size);
  }
  to_features(pass.n, pass.x[L], pass.features);
  const int64_t F = layout.features;
  dots<R>({pass.logits, layout.outputs, layout.bias < 0 ? nullptr : theta + layout.bias}, pass.n, layout.net.outputs,
          {{pass.features, theta + layout.weight, F, F}});
}

template <class R>
void ConvNetwork<R>::add_image(int64_t i, R* dx) const {
  const ConvBlock& b = layout.net.block[0];
  const int64_t pixels = b.height * b.width, in = layout.block[0].flipped_in();
  const R* from = dimage + (whole(0) ? i * pixels * in : 0);
  for (int64_t c = 0; c < b.in; c++)
    for (int64_t p = 0; p < pixels; p++) dx[c * pixels + p] += from[p * in + c];
}

template <class R>
template <int count>
void ConvNetwork<R>::whole_kernel(int l, int64_t n, const ConvPair<R> (&pairs)[count], R* dw, bool adds) const {
  const int64_t width = shapes[size_t(l)].x_size, out = layout.block[l].out;
  Product<R> list[count];
  for (int i = 0; i < count; i++) list[i] = {{pairs[i].x, 1, width}, pairs[i].dy, out, n};
  products<R>({dw, out, adds ? dw : nullptr, out}, width, out, list);
}

template <class R>
template <int count>
void ConvNetwork<R>::whole_to_x(int l, int64_t n, const ConvSource<R> (&sources)[count], R* to) const {
  const auto& a = layout.block[l];
  const int64_t in = a.flipped_in(), taps = a.kernel * a.kernel;
  for (int64_t tap = 0; tap < taps; tap++) {
    Product<R> list[count];
    for (int i = 0; i < count; i++) list[i] = {{sources[i].x, a.out, 1}, sources[i].w + tap * a.out * in, in, a.out};
    products<R>({to + tap * in, taps * in}, n, in, list);
  }
}

template <class R>
void ConvNetwork<R>::reverse(const R* theta, const ConvPass<R>& pass, const R* doutputs, R* grad, R* dx) const {
  const int L = layout.net.blocks;
  const int64_t n = pass.n, F = layout.features, out = layout.outputs;
  if (grad) {
    clear(layout, grad, [&](int l) { return whole(l); });
    products<R>({grad + layout.weight, F}, layout.net.outputs, F, {{{doutputs, 1, out}, pass.features, F, n}});  // doutputs' x
  }
  if (grad && layout.bias >= 0) column_sums(doutputs, out, n, layout.net.outputs, grad + layout.bias);
  products<R>({features_of(pass.d[L - 1]), F}, n, F, {{{doutputs, out, 1}, theta + layout.weight, F, layout.net.outputs}});
  from_features(n, pass.d[L - 1]);
  for (int l = L - 1; l >= 0; l--) {
    const BlockShape<R>& s = shapes[size_t(l)];
    const auto d = [&](int64_t i) { return pass.d[l] + i * s.dense_size; };
    const auto z = [&](int64_t i) { return pass.z[l] + i * s.z_size; };
    for (const Norm<R>& norm : pass.norms[l])
      for (R* each : {norm.dsum, norm.dproduct}) std::memset(each, 0, size_t(norm.channels) * sizeof(R));
    for (int64_t i = 0; i < n && has_norm(l); i++) add_gradients(s.image, pass.top[l] + i * s.dense_size, d(i), pass.norm(l, i));
    for (const Norm<R>& norm : pass.norms[l])
      finish_gradients(layout.net.block[l], pixels(l, pass), of(theta, l, kGamma), norm, of(grad, l, kGamma), of(grad, l, kBeta),
                       lost_bias_of(grad, l));
    for (int64_t i = 0; i < n; i++) {
      gradient_image(s.image, z(i), d(i), pass.norm(l, i), at(dz[l], l, i), bias_of(grad, l));
      if (whole(l)) continue;
      if (grad) correlate<R>(s.forward, {{pass.x[l] + i * s.x_size, dz[l]}}, of(grad, l, kWeight));
      if (!l && !dx) continue;
      convolve_back<R>(s.back, {{dz[l], theta + layout.block[l].flipped}}, cleared_image(l, i, pass.d));
      if (!l) add_image(i, dx + i * layout.net.example_size());
    }
    if (whole(l) && grad) whole_kernel(l, n, {{pass.x[l], dz[l]}}, of(grad, l, kWeight), false);
    if (!whole(l) || (!l && !dx)) continue;
    whole_to_x(l, n, {{dz[l], theta + layout.block[l].flipped}}, l ? pass.d[l - 1] : dimage);
    for (int64_t i = 0; i < n && !l; i++) add_image(i, dx + i * layout.net.example_size());
  }
}

template <class R>
void ConvNetwork<R>::tangents_forward(const R* theta, const R* v, const ConvPass<R>& pass, const Targets<R>& y) const {
  const int L = layout.net.blocks;
  for (int l = 0; l < L; l++) {
    const BlockShape<R>& s = shapes[size_t(l)];
    const auto z = [&](int64_t i) { return pass.z[l] + i * s.z_size; };
    for (const Tangents<R>& r : tangents[l])
      for (R* each : {r.sum, r.product, r.rsum, r.rproduct}) std::memset(each, 0, size_t(layout.block[l].out) * sizeof(R));
    const int64_t out = layout.block[l].out, width = s.x_size;
    const Product<R> all[2] = {{{pass.x[l], width, 1}, of(v, l, kWeight), out, width},
                               {{rx[l], width, 1}, of(theta, l, kWeight), out, width}};
    if (whole(l)) products<R>({rz[l], out, bias_of(v, l)}, pass.n, out, all, l ? 2 : 1);
    for (int64_t i = 0; i < pass.n; i++) {
      R* to = rz[l] + i * s.z_size;  // rz = V * x + W * rx
      const ConvSource<R> first{pass.x[l] + i * s.x_size, of(v, l, kWeight)};
      if (l && !whole(l)) convolve<R>(s.forward, {first, {rx[l] + i * s.x_size, of(theta, l, kWeight)}}, bias_of(v, l), to);
      else if (!whole(l)) convolve<R>(s.forward, {first}, bias_of(v, l), to);
      if (has_norm(l)) add_tangents(s.image, z(i), to, pass.norm(l, i), of_sets(tangents[l], i));
    }
    for (size_t set = 0; set < pass.norms[l].size(); set++)
      finish_tangents(layout.net.block[l], pixels(l, pass), of(v, l, kGamma), of(v, l, kBeta), lost_bias_of(v, l), pass.norms[l][set],
                      tangents[l][set]);
    for (int64_t i = 0; i < pass.n; i++)
      forward_tangents(s.image, z(i), rz[l] + i * s.z_size, pass.norm(l, i), of_sets(tangents[l], i),
                       rx[l + 1] + i * s.out_size + s.out_first);
  }
  to_features(pass.n, rx[L], rfeatures);
  const int64_t F = layout.features;
  dots<R>({routputs, layout.outputs, layout.bias < 0 ? nullptr : v + layout.bias}, pass.n, layout.net.outputs,
          {{pass.features, v + layout.weight, F, F}, {rfeatures, theta + layout.weight, F, F}});
  loss_tangent(outputs_of(pass), y, routputs, rdoutputs);
}

template <class R>
void ConvNetwork<R>::block_tangents(int l, const R* theta, const R* v, const ConvPass<R>& pass, R* sum, R* dx) const {
  const BlockShape<R>& s = shapes[size_t(l)];
  const auto z = [&](int64_t i) { return pass.z[l] + i * s.z_size; };
  const auto tz = [&](int64_t i) { return rz[l] + i * s.z_size; };
  const auto d = [&](int64_t i) { return pass.d[l] + i * s.dense_size; };
  const auto td = [&](int64_t i) { return rd[l] + i * s.dense_size; };
  const auto r = [&](int64_t i) -> const Tangents<R>& { return of_sets(tangents[l], i); };
  for (int64_t i = 0; i < pass.n && has_norm(l); i++) add_gradient_tangents(s.image, z(i), tz(i), d(i), td(i), pass.norm(l, i), r(i));
  for (size_t set = 0; set < pass.norms[l].size(); set++)
    finish_gradient_tangents(layout.net.block[l], pixels(l, pass), of(theta, l, kGamma), of(v, l, kGamma), pass.norms[l][set],
                             tangents[l][set], of(sum, l, kGamma), of(sum, l, kBeta), lost_bias_of(sum, l));
  for (int64_t i = 0; i < pass.n; i++) {
    R *first = at(dz[l], l, i), *rfirst = at(rdz[l], l, i);
    gradient_tangents(s.image, z(i), tz(i), d(i), td(i), pass.norm(l, i), r(i), rfirst, bias_of(sum, l));
    const ConvPair<R> pair{pass.x[l] + i * s.x_size, rfirst};  // rdW = rdz * x + dz * rx
    R* dw = of(sum, l, kWeight);
    if (!l && !whole(l)) correlate<R>(s.forward, {pair}, dw);  // the images have no tangents
    if (!l && !dx) continue;
    gradient_image<R>(s.image, z(i), d(i), pass.norm(l, i), first, nullptr);
    if (whole(l)) continue;
    if (l) correlate<R>(s.forward, {pair, {rx[l] + i * s.x_size, first}}, dw);
    const int64_t flipped = layout.block[l].flipped;
    // rdx = W' rdz + V' dz
    convolve_back<R>(s.back, {{rdz[l], theta + flipped}, {dz[l], v + flipped}}, cleared_image(l, i, rd));
    if (!l) add_image(i, dx + i * layout.net.example_size());
  }
  if (whole(l)) whole_tangents(l, theta, v, pass, sum, dx);
}

template <class R>
void ConvNetwork<R>::whole_tangents(int l, const R* theta, const R* v, const ConvPass<R>& pass, R* sum, R* dx) const {
  const ConvPair<R> pair{pass.x[l], rdz[l]};
  R* dw = of(sum, l, kWeight);
  if (l) whole_kernel(l, pass.n, {pair, {rx[l], dz[l]}}, dw, true);
  else whole_kernel(l, pass.n, {pair}, dw, true);
  if (!l && !dx) return;
  const int64_t flipped = layout.block[l].flipped;
  whole_to_x(l, pass.n, {{rdz[l], theta + flipped}, {dz[l], v + flipped}}, l ? rd[l - 1] : dimage);
  for (int64_t i = 0; i < pass.n && !l; i++) add_image(i, dx + i * layout.net.example_size());
}

template <class R>
void ConvNetwork<R>::curvature(const R* theta, const R* v, const ConvPass<R>& pass, const Targets<R>& y, R dloss, R* sum, R* dx) const {
  if (!pass.n) return;  // there is no memory for tangents
  const int L = layout.net.blocks;
  const int64_t n = pass.n, F = layout.features, out = layout.outputs, classes = layout.net.outputs;
  tangents_forward(theta, v, pass, y);
  for (int64_t i = 0; dloss != 0 && i < n * out; i++) rdoutputs[i] += dloss * pass.dlogits[i];
  R* w = sum + layout.weight;
  products<R>({w, F, w, F}, classes, F, {{{rdoutputs, 1, out}, pass.features, F, n}, {{pass.dlogits, 1, out}, rfeatures, F, n}});
  if (layout.bias >= 0) column_sums(rdoutputs, out, n, classes, sum + layout.bias, true);
  products<R>({features_of(rd[L - 1]), F}, n, F,
              {{{rdoutputs, out, 1}, theta + layout.weight, F, classes}, {{pass.dlogits, out, 1}, v + layout.weight, F, classes}});
  from_features(n, rd[L - 1]);
  for (int l = L - 1; l >= 0; l--) block_tangents(l, theta, v, pass, sum, dx);
}

template <class R>
void ConvNetwork<R>::gauss_newton(const R* theta, const R* v, const ConvPass<R>& pass, const Targets<R>& y, R* product) const {
  if (pass.n) tangents_forward(theta, v, pass, y);
  reverse(theta, pass, rdoutputs, product, nullptr);
}

template struct ConvPass<float>;
template struct ConvPass<double>;
template struct ConvNetwork<float>;
template struct ConvNetwork<double>;

}  // namespace fastmeta::FASTMETA_ISA
