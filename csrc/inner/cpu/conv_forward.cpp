// conv_forward without a linear layer: the way back through an encoder (conv_features.h), and its calls.
#include "inner/cpu/conv_features.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
void ConvEncoder<R>::backward(int64_t t) {
  load(t, true);
  std::memset(grad_, 0, size_t(layout_.gradient) * sizeof(R));
  load_gradients(t);
  for (int l = last_; l >= 0; l--) {
    if (is_batch(l)) sum_gradients(l);
    if (net(l).norm == ConvNorm::none) finish_gradients<R>(net(l), at(l).shape.pixels, nullptr, norm(l, 0), nullptr, nullptr, nullptr);
    if (!is_batch(l))
      for (R* each : sums_) std::memset(each, 0, size_t(n_ * widest_) * sizeof(R));
    by_runs(l) ? gradients_by_runs(l) : gradients_at_once(l);
    add_sums(l, t);
  }
  if (call_.dx) store_images(t);
  if (call_.dparams.any()) store_block(layout_, grad_, call_.dparams, t);
}

template <class R>
void ConvEncoder<R>::load_gradients(int64_t t) {
  const BlockShape<R>& s = at(last_).shape;
  const int64_t out = net(last_).out, pixels = s.image.out_height() * s.image.out_width();
  parallel_for(n_, 1 + kTaskGrain / (1 + out * pixels), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const R* from = call_.dout + (t * n_ + i) * out * pixels;
      std::memset(d(last_, i), 0, size_t(s.dense_size) * sizeof(R));
      for (int64_t channel = 0; channel < out; channel++)
        for (int64_t p = 0; p < pixels; p++) d(last_, i)[p * channels(last_) + channel] = *from++;
    }
  });
}

// dsum and dproduct of `sums` become those of one image.
template <class R>
void ConvEncoder<R>::sum_image(int l, int64_t i, const Norm<R>& sums) const {
  const Block& b = at(l);
  for (R* each : {sums.dsum, sums.dproduct}) std::memset(each, 0, size_t(channels(l)) * sizeof(R));
  if (b.other >= 0) return add_sum_gradients(b.shape.image, summand(l, i), summand(b.other, i), d(b.dout, i), sums);
  Norm<R> own = norm(l, i);
  own.dsum = sums.dsum, own.dproduct = sums.dproduct;
  add_gradients(b.shape.image, top(l, i), d(l, i), own);
}

// The sums of the gradients that reach a batch norm, and its factors.
template <class R>
void ConvEncoder<R>::sum_gradients(int l) {
  const Block& b = at(l);
  const Norm<R>& whole = norm(l, 0);
  for_each_group(l, 0, n_, 1, [&](int64_t i, int64_t, const Room&) { sum_image(l, i, of_images_[size_t(i)]); });
  parallel_for(channels(l), 1 + kTaskGrain / (1 + n_), [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; channel++) {
      double sum = 0, product = 0;
      for (const Norm<R>& own : of_images_) sum += double(own.dsum[channel]), product += double(own.dproduct[channel]);
      whole.dsum[channel] = R(sum), whole.dproduct[channel] = R(product);
    }
  });
  finish_gradients<R>(net(l), n_ * b.shape.pixels, of(theta_, l, kGamma), whole, of(grad_, l, kGamma), of(grad_, l, kBeta),
                      of(grad_, l, kBias));
}

template <class R>
void ConvEncoder<R>::gradient_to_z(int l, int64_t i, R* dz) const {
  const Block& b = at(l);
  const Norm<R>& set = norm(l, i);
  R *dbias = sums_[0] + i * widest_, *dgamma = sums_[1] + i * widest_, *dbeta = sums_[2] + i * widest_;
  if (net(l).norm == ConvNorm::group) {
    sum_image(l, i, set);
    finish_gradients(net(l), b.shape.pixels, of(theta_, l, kGamma), set, dgamma, dbeta, static_cast<R*>(nullptr));
  }
  if (is_batch(l)) dbias = nullptr;
  if (b.other >= 0) sum_gradient(b.shape.image, summand(l, i), summand(b.other, i), d(b.dout, i), dz, dbias);
  else gradient_image(b.shape.image, z(l, i), d(l, i), set, dz, dbias);
}

template <class R>
void ConvEncoder<R>::gradients_of_image(int l, int64_t i, const Room& room, R* dkernel) const {
  const BlockShape<R>& s = at(l).shape;
  gradient_to_z(l, i, room.dz);
  if (dkernel) correlate<R>(s.forward, {{x(l, i) + at(l).tiles.x_first, room.dz}}, dkernel);
  if (!wants_dx(l)) return;
  R* dx = d(to(l), i);
  if (begins(l)) std::memset(dx, 0, size_t(d_size(to(l))) * sizeof(R));
  convolve_back<R>(s.back, {{room.dz, theta_ + layout_.block[l].flipped}}, dx);
}

// By tiles. dkernel: its gradient at points, to be added to; or null, and numbers at points go to `shared_`, those of images from `from`
// on.
template <class R>
void ConvEncoder<R>::gradients_of_group(int l, int64_t first, int64_t end, const Room& room, R* dkernel, int64_t from,
                                        int64_t images) const {
  const ConvTiles& s = at(l).tiles;
  const int64_t all = (end - first) * s.tiles(), points = s.points();
  for (int64_t i = first; i < end; i++) gradient_to_z(l, i, room.dz + (i - first) * at(l).shape.z_size);
  if (wants_dx(l) && begins(l)) std::memset(d(to(l), first), 0, size_t((end - first) * d_size(to(l))) * sizeof(R));
  for (int64_t k = 0; k < all; k += band(l)) {
    const Tiles<R> tiles{k, least(all, k + band(l)), room.zeros, room.unread};
    const int64_t count = tiles.end - k, place = (first - from) * s.tiles() + k;
    AtPoints<R> v{room.v, count}, m{room.m, count};
    if (!dkernel) {
      m = {shared_ + place * s.out, images * s.tiles()};
      v = {shared_ + points * m.count * s.out + place * s.in, m.count};
    }
    gradients_to_points(s, tiles, room.dz, m);
    inputs_to_points(s, tiles, x(l, first), v);
    for (int64_t p = 0; dkernel && p < points; p++) add_products(l, v, m, count, p, 0, s.in, dkernel, true);
    if (!wants_dx(l)) continue;
    const AtPoints<R> dv{room.v, count};
    for (int64_t p = 0; p < points; p++)
      products<R>({dv.data + p * count * s.in_padded, s.in_padded}, count, s.in_padded,
                  {{{m.data + p * m.count * s.out, s.out, 1}, at(l).points + p * s.out * s.in_padded, s.in_padded, s.out}});
    points_to_gradients(s, tiles, dv, d(to(l), first));
  }
}

// du [in, out] of a point, rows [begin, end), = v' m over `count` tiles, or += with `adds`.
template <class R>
void ConvEncoder<R>::add_products(int l, AtPoints<R> v, AtPoints<R> m, int64_t count, int64_t point, int64_t begin, int64_t end, R* du,
                                  bool adds) const {
  constexpr int64_t kInner = 256;  // tiles whose numbers stay in cache
  const ConvTiles& s = at(l).tiles;
  R* to = du + (point * s.in + begin) * s.out;
  const R *of_v = v.data + point * v.count * s.in + begin, *of_m = m.data + point * m.count * s.out;
  for (int64_t k = 0; k < count; k += kInner)
    products<R>({to, s.out, adds || k ? to : nullptr, s.out}, end - begin, s.out,
                {{{of_v + k * s.in, 1, s.in}, of_m + k * s.out, s.out, least(kInner, count - k)}});
}

template <class R>
void ConvEncoder<R>::gradients_by_runs(int l) {
  const Block& b = at(l);
  const bool wanted = call_.dparams.value[4 * l];
  const int64_t size = b.tiled ? b.tiles.weights() : 9 * b.tiles.in * b.tiles.out;
  for_each_group(l, 0, n_, run_, [&](int64_t first, int64_t end, const Room& room) {
    R* dkernel = of_runs_ + first / run_ * size;
    std::memset(dkernel, 0, size_t(size) * sizeof(R));
    for (int64_t i = first; i < end; i += group(l))
      if (b.tiled) gradients_of_group(l, i, least(end, i + group(l)), room, dkernel, 0, 0);
      else gradients_of_image(l, i, room, wanted ? dkernel : nullptr);
  });
  if (!wanted) return;
  parallel_for(size, 4096, [&](int64_t begin, int64_t end) {
    R* sum = b.tiled ? of_runs_ : of(grad_, l, kWeight);  // which is 0
    for (int64_t run = b.tiled; run < runs_; run++)
      for (int64_t k = begin; k < end; k++) sum[k] += of_runs_[run * size + k];
  });
}

// All threads on one gradient: of some images the numbers at points, then the products of all at each.
template <class R>
void ConvEncoder<R>::gradients_at_once(int l) {
  constexpr int64_t kRows = 64;  // of a product
  const ConvTiles& s = at(l).tiles;
  const int64_t parts = (s.in + kRows - 1) / kRows, images = at_once(l);
  for (int64_t from = 0; from < n_; from += images) {
    const int64_t end = least(n_, from + images), count = (end - from) * s.tiles();
    for_each_group(l, from, end, group(l),
                   [&](int64_t first, int64_t last, const Room& room) { gradients_of_group(l, first, last, room, nullptr, from, images); });
    const AtPoints<R> m{shared_, images * s.tiles()}, v{shared_ + s.points() * m.count * s.out, m.count};
    parallel_for(s.points() * parts, 1, [&](int64_t begin, int64_t stop) {
      for (int64_t k = begin; k < stop; k++)
        add_products(l, v, m, count, k / parts, k % parts * kRows, least(s.in, (k % parts + 1) * kRows), kernel_, from);
    });
  }
}

// The images' sums, and the kernel's gradient of what is done by tiles.
template <class R>
void ConvEncoder<R>::add_sums(int l, int64_t t) {
  const ConvTensor tensors[3] = {kBias, kGamma, kBeta};
  for (int k = 0; k < 3 && !is_batch(l); k++)
    if (R* to = of(grad_, l, tensors[k]))
      for (int64_t i = 0; i < n_; i++)
        for (int64_t channel = 0; channel < channels(l); channel++) to[channel] += sums_[k][i * widest_ + channel];
  const ConvTiles& s = at(l).tiles;
  R* to = call_.dparams.value[4 * l];
  if (!to || !at(l).tiled) return;
  to += t * tensor_size(layout_.net, 4 * l);
  parallel_for(s.channels, 1 + kTaskGrain / (s.points() * s.out),
               [&](int64_t begin, int64_t end) { points_to_kernel(s, by_runs(l) ? of_runs_ : kernel_, begin, end, to); });
}

template <class R>
void ConvEncoder<R>::store_images(int64_t t) const {
  const ConvBlock& b = net(0);
  const int64_t pixels = b.height * b.width, in = layout_.block[0].flipped_in();
  parallel_for(n_, 1 + kTaskGrain / (b.in * pixels), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      for (int64_t channel = 0; channel < b.in; channel++)
        for (int64_t p = 0; p < pixels; p++) call_.dx[((t * n_ + i) * b.in + channel) * pixels + p] = d(-1, i)[p * in + channel];
  });
}

namespace {

template <class R>
int64_t numbers(const Scratch& scratch) {
  return (scratch.used() + 63) / int64_t(sizeof(R)) + 64 / int64_t(sizeof(R));  // the memory may begin within a line
}
template <class R>
Scratch aligned(R* memory) {
  return Scratch(reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64));
}

template <class R>
ConvLayout<R> layout_of(const ConvFeatures<R>& c, bool backward) {
  ConvParams<const R> params = c.params;
  for (int l = 0; l < c.shape.blocks; l++)
    if (is_tiled(c.shape, l)) params.value[4 * l] = nullptr;
  return ConvLayout<R>(c.shape, params, backward && c.dx);
}

}  // namespace

template <class R>
void conv_features_sizes(const ConvFeatures<R>& c) {
  const ConvLayout<R> layout = layout_of(c, c.dout);
  Scratch kept(nullptr), work(nullptr);
  const ConvEncoder<R> measure(c, layout, c.dout, kept, work);
  *c.sizes = {numbers<R>(kept), numbers<R>(work)};
}

template <class R>
void conv_features_fwd(const ConvFeatures<R>& c) {
  const ConvLayout<R> layout = layout_of(c, false);
  for (int64_t t = 0; t < c.shape.tasks && c.count; t++) {
    Scratch kept = aligned(c.keeps ? c.kept + t * c.sizes->kept : nullptr), work = aligned(c.work);
    ConvEncoder<R>(c, layout, false, kept, work).forward(t);
  }
}

template <class R>
void conv_features_bwd(const ConvFeatures<R>& c) {
  for (int i = 0; i < 4 * c.shape.blocks && !c.count; i++)
    if (R* to = c.dparams.value[i]) std::memset(to, 0, size_t(c.shape.tasks * tensor_size(c.shape, i)) * sizeof(R));
  const ConvLayout<R> layout = layout_of(c, true);
  for (int64_t t = 0; t < c.shape.tasks && c.count; t++) {
    Scratch kept = aligned(c.kept + t * c.sizes->kept), work = aligned(c.work);
    ConvEncoder<R>(c, layout, true, kept, work).backward(t);
  }
}

#define INSTANTIATE(R)                                          \
  template void ConvEncoder<R>::backward(int64_t);              \
  template void conv_features_sizes<R>(const ConvFeatures<R>&); \
  template void conv_features_fwd<R>(const ConvFeatures<R>&);   \
  template void conv_features_bwd<R>(const ConvFeatures<R>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
