// See conv_features.h: memory, and the way forward.
#include "inner/cpu/conv_features.h"

#include <algorithm>

namespace fastmeta::FASTMETA_ISA {
namespace {

// The size of equal parts of so many images, of about `images` each, their number a multiple of `threads`.
int64_t equal_parts(int64_t n, int64_t images, int64_t threads) {
  const int64_t parts = ((n + images - 1) / images + threads - 1) / threads * threads;
  return most(1, (n + parts - 1) / most(1, parts));
}

}  // namespace

template <class R>
ConvEncoder<R>::ConvEncoder(const ConvFeatures<R>& call, const ConvLayout<R>& layout, bool backward, Scratch& kept, Scratch& work)
    : call_(call),
      layout_(layout),
      n_(call.count),
      run_(most(1, (call.count + kRuns - 1) / kRuns)),
      runs_((call.count + run_ - 1) / run_),
      last_(layout.net.blocks - 1) {
  for (int l = 0; l <= last_; l++) {
    blocks_.push_back(block_of(l));
    widest_ = most(widest_, most(channels(l), most(at(l).tiles.in, at(l).tiles.in_padded)));
  }
  place_numbers(call.keeps || backward, kept, work);
  for (Block& b : blocks_) b.points = work.take<R>(b.tiled ? b.tiles.points() * most(b.tiles.in, b.tiles.in_padded) * b.tiles.out : 0);
  for (int64_t i = 0; i < n_; i++) of_images_.emplace_back(widest_, work);
  theta_ = work.take<R>(layout.size);
  if (!backward) return;
  grad_ = work.take<R>(layout.gradient);
  place_sums(work);
  place_gradients(work);
}

template <class R>
typename ConvEncoder<R>::Block ConvEncoder<R>::block_of(int l) const {
  const ConvBlock& b = net(l);
  const bool tiled = is_tiled(layout_.net, l);
  Block found{BlockShape<R>(layout_, l), {}, tiled, l - int(b.skip), -1, l, nullptr, nullptr, nullptr, nullptr, {}};
  BlockShape<R>& shape = found.shape;
  if (b.skip) found.other = l - 1;
  if (is_added(l)) {  // what follows of both follows here
    const ConvBlock& sum = net(l + 1);
    found.other = found.dout = l + 1;
    shape.image.pool = sum.pool, shape.image.relu = sum.relu, shape.image.slope = sum.slope;
    shape.dense_size = sum.out_height() * sum.out_width() * channels(l);
  }
  const int64_t around = layout_.net.block[found.source].padding - b.padding, side = b.kernel == 3 ? 2 : 1;
  const auto& a = layout_.block[l];
  found.tiles = {b.kernel,
                 b.stride,
                 (b.conv_height() + side - 1) / side,
                 (b.conv_width() + side - 1) / side,
                 b.conv_height(),
                 b.conv_width(),
                 b.in,
                 b.out,
                 a.in,
                 a.flipped_in(),
                 a.out,
                 b.height + 2 * b.padding + around,
                 b.width + 2 * b.padding + around,
                 around * (shape.x_row + a.in),
                 shape.x_row,
                 shape.x_size,
                 b.height,
                 b.width,
                 b.padding};
  return found;
}

// Where x, z, top and the norms' numbers are: of their own if they are kept, else where they live one after another.
template <class R>
void ConvEncoder<R>::place_numbers(bool keeps, Scratch& kept, Scratch& work) {
  Scratch& numbers = keeps ? kept : work;
  int last_use[kMaxConvs] = {}, place[kMaxConvs];
  for (int l = 0; l <= last_; l++) last_use[at(l).source] = l;
  Places places;
  std::vector<int64_t> sizes;
  int64_t z_size = 0, dense_size = 0;
  for (int l = 0; l <= last_; l++) {
    const BlockShape<R>& s = at(l).shape;
    z_size = most(z_size, s.z_size), dense_size = most(dense_size, s.dense_size);
    if (at(l).source != l) continue;
    place[l] = keeps ? l : places.take(l ? l - 1 : 0, last_use[l]);
    sizes.resize(std::max(sizes.size(), size_t(place[l]) + 1));
    sizes[size_t(place[l])] = most(sizes[size_t(place[l])], s.x_size);
  }
  std::vector<R*> memory;
  for (int64_t size : sizes) memory.push_back(numbers.take<R>(n_ * size));
  R* z[2] = {};  // what is added lives with that to which it is added
  R* top[2] = {};
  for (int i = 0; i < 2 && !keeps; i++) z[i] = work.take<R>(n_ * z_size), top[i] = work.take<R>(n_ * dense_size);
  for (int l = 0; l <= last_; l++) {
    Block& b = blocks_[size_t(l)];
    b.x = memory[size_t(place[b.source])];
    b.z = keeps ? kept.take<R>(n_ * b.shape.z_size) : z[l % 2];
    b.top = keeps ? kept.take<R>(n_ * b.shape.dense_size) : top[l % 2];
    for (int64_t i = 0; i < sets(net(l), n_); i++) b.norms.emplace_back(channels(l), numbers);
  }
}

template <class R>
void ConvEncoder<R>::place_sums(Scratch& work) {
  for (R*& each : sums_) each = work.take<R>(n_ * widest_);
  int64_t at_points = 0, kernel = 0;
  for (int l = 0; l <= last_; l++) {
    const Block& b = at(l);
    const ConvTiles& s = b.tiles;
    if (!b.tiled) run_size_ = most(run_size_, 9 * s.in * s.out);
    else if (by_runs(l)) run_size_ = most(run_size_, s.weights());
    else at_points = most(at_points, at_once(l) * s.tiles() * s.points() * (s.in + s.out)), kernel = most(kernel, s.weights());
  }
  of_runs_ = work.take<R>(runs_ * run_size_);
  kernel_ = work.take<R>(kernel);
  shared_ = work.take<R>(at_points);
}

template <class R>
void ConvEncoder<R>::place_gradients(Scratch& work) {
  for (int l = 0; l <= last_; l++) first_to_[to(l) + 1] = l;
  first_to_[last_ + 1] = last_ + 1;
  Places places;
  int64_t largest = 0;
  for (int l = last_; l >= -1; l--) {  // step -k is that of block k
    if (l < 0 && !call_.dx) continue;
    if (l >= 0 && is_added(l)) continue;  // its d is the next block's
    const int last_use = l >= 0 && net(l).skip ? l - 1 : l;
    slot_[l + 1] = places.take(-first_to_[l + 1], -last_use);
    largest = most(largest, d_size(l));
  }
  for (int k = 0; k < places.count(); k++) slots_.push_back(work.take<R>(n_ * largest));
}

template <class R>
int64_t ConvEncoder<R>::d_size(int l) const {
  return l < 0 ? layout_.dimage_size() : at(l).shape.dense_size;
}

template <class R>
int64_t ConvEncoder<R>::band(int l) const {
  const ConvTiles& s = at(l).tiles;
  return most(kBandTiles, kBand / (s.points() * (s.in + s.out) * int64_t(sizeof(R))));
}

template <class R>
int64_t ConvEncoder<R>::at_once(int l) const {
  const ConvTiles& s = at(l).tiles;
  return equal_parts(n_, most(1, kShared / (s.tiles() * s.points() * (s.in + s.out) * int64_t(sizeof(R)))), 1);
}

// Images of which a thread takes the tiles together, so that each product has enough rows.
template <class R>
int64_t ConvEncoder<R>::group(int l) const {
  if (!at(l).tiled) return 1;
  return equal_parts(n_, (kBandTiles + at(l).tiles.tiles() - 1) / at(l).tiles.tiles(), threads_now());
}

template <class R>
typename ConvEncoder<R>::Room ConvEncoder<R>::room(int l, Scratch& scratch) const {
  const Block& b = at(l);
  const ConvTiles& s = b.tiles;
  const int64_t at_points = b.tiled ? band(l) * s.points() : 0;
  Room found;
  found.zeros = scratch.take<R>(widest_), found.unread = scratch.take<R>(widest_);
  found.row = scratch.take<R>(b.shape.out_size);
  found.dz = scratch.take<R>(grad_ ? group(l) * b.shape.z_size : 0);
  found.v = scratch.take<R>(at_points * most(s.in, s.in_padded)), found.m = scratch.take<R>(at_points * s.out);
  return found;
}

template <class R>
void ConvEncoder<R>::load_points(int l, int64_t t, bool turned) {
  const Block& b = at(l);
  if (!b.tiled || (t && layout_.shared)) return;
  const R* kernel = call_.params.value[4 * l] + t * call_.params.stride[4 * l];
  const int64_t rows = turned ? b.tiles.out : b.tiles.in;
  parallel_for(rows, 1 + kTaskGrain / (b.tiles.points() * (turned ? b.tiles.in : b.tiles.out)),
               [&](int64_t begin, int64_t end) { kernel_to_points(b.tiles, kernel, turned, begin, end, b.points); });
}

template <class R>
void ConvEncoder<R>::load(int64_t t, bool turned) {
  if (!t || !layout_.shared) load_block(layout_, call_.params, t, theta_);
  for (int l = 0; l <= last_; l++) load_points(l, t, turned);
}

template <class R>
void ConvEncoder<R>::forward(int64_t t) {
  load(t, false);
  for (int l = 0; l <= last_; l++) {
    convolve_images(l, t);
    if (is_batch(l)) merge_statistics(l, t);
    const bool adds = net(l).skip;
    if (is_added(l) || !(adds || is_batch(l))) continue;  // or handed on already
    for_each_group(l, 0, n_, 1, [&](int64_t i, int64_t, const Room& room) { hand_on(l, i, room.row, t); });
  }
}

template <class R>
void ConvEncoder<R>::convolve_images(int l, int64_t t) {
  if (net(l).norm == ConvNorm::none) finish_statistics<R>(net(l), at(l).shape.pixels, nullptr, nullptr, nullptr, norm(l, 0));
  for_each_group(l, 0, n_, group(l), [&](int64_t first, int64_t end, const Room& room) {
    for (int64_t i = first; i < end && !l; i++) {
      std::memset(x(0, i), 0, size_t(at(0).shape.x_size) * sizeof(R));
      at(0).shape.load(net(0), call_.x + (t * n_ + i) * layout_.net.example_size(), x(0, i));
    }
    convolve_group(l, t, first, end, room);
  });
}

// The images' z; of what needs no other images, all that follows.
template <class R>
void ConvEncoder<R>::convolve_group(int l, int64_t t, int64_t first, int64_t end, const Room& room) const {
  const Block& b = at(l);
  const ConvTiles& s = b.tiles;
  const R *bias = is_batch(l) ? nullptr : of(theta_, l, kBias), *gamma = of(theta_, l, kGamma), *beta = of(theta_, l, kBeta);
  const int64_t all = b.tiled ? (end - first) * s.tiles() : 0;
  for (int64_t k = 0; k < all; k += band(l)) {
    const Tiles<R> tiles{k, least(all, k + band(l)), room.zeros, room.unread};
    const int64_t count = tiles.end - k;
    inputs_to_points(s, tiles, x(l, first), AtPoints<R>{room.v, count});
    for (int64_t p = 0; p < s.points(); p++)
      products<R>({room.m + p * count * s.out, s.out}, count, s.out,
                  {{{room.v + p * count * s.in, s.in, 1}, b.points + p * s.in * s.out, s.out, s.in}});
    points_to_outputs(s, tiles, AtPoints<R>{room.m, count}, bias, z(l, first));
  }
  for (int64_t i = first; i < end; i++) {
    if (!b.tiled) convolve<R>(b.shape.forward, {{x(l, i) + s.x_first, of(theta_, l, kWeight)}}, bias, z(l, i));
    if (is_batch(l)) {
      add_statistics(b.shape.image, z(l, i), 0, of_images_[size_t(i)]);
      continue;
    }
    if (net(l).norm == ConvNorm::group) {
      add_statistics(b.shape.image, z(l, i), 0, norm(l, i));
      finish_statistics(net(l), b.shape.pixels, gamma, beta, static_cast<const R*>(nullptr), norm(l, i));
    }
    if (!net(l).skip && !is_added(l)) hand_on(l, i, room.row, t);
  }
}

// Of the images' means and sums of squares those of the batch; Chan et al. 1979.
template <class R>
void ConvEncoder<R>::merge_statistics(int l, int64_t t) {
  const double pixels = double(at(l).shape.pixels);
  const Norm<R>& whole = norm(l, 0);
  const R* bias = of(theta_, l, kBias);
  int64_t place = 0, all = 0;  // among the channels of all batch norms
  for (int k = 0; k <= last_; k++) place += is_batch(k) && k < l ? net(k).out : 0, all += is_batch(k) ? net(k).out : 0;
  parallel_for(channels(l), 1 + kTaskGrain / (10 * n_ + 1), [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; channel++) {
      double mean = 0, square = 0;
      for (int64_t i = 0; i < n_; i++) {
        const double off = double(of_images_[size_t(i)].mean[channel]) - mean;
        square += double(of_images_[size_t(i)].square[channel]) + off * off * pixels * double(i) / double(i + 1);
        mean += off / double(i + 1);
      }
      whole.mean[channel] = R(mean), whole.square[channel] = R(square);
      if (!call_.mean || channel >= net(l).out) continue;
      call_.mean[t * all + place + channel] = R(mean + (bias ? double(bias[channel]) : 0));
      call_.var[t * all + place + channel] = R(square / (double(n_) * pixels));
    }
  });
  finish_statistics<R>(net(l), n_ * at(l).shape.pixels, of(theta_, l, kGamma), of(theta_, l, kBeta), bias, whole);
}

// row: room for an image that the block hands on, where it is the last.
template <class R>
void ConvEncoder<R>::hand_on(int l, int64_t i, R* row, int64_t t) const {
  const BlockShape<R>& s = at(l).shape;
  R* next = l < last_ ? x(l + 1, i) : row;
  if (l < last_) std::memset(next, 0, size_t(s.out_size) * sizeof(R));
  R* to = next + (l < last_ ? s.out_first : 0);
  if (at(l).other < 0) forward_image(s.image, z(l, i), norm(l, i), to, top(l, i));
  else forward_sum(s.image, summand(l, i), summand(l - 1, i), to);
  if (l < last_) return;
  const int64_t pixels = s.image.out_height() * s.image.out_width(), out = net(l).out;
  R* features = call_.out + (t * n_ + i) * out * pixels;
  for (int64_t channel = 0; channel < out; channel++)
    for (int64_t p = 0; p < pixels; p++) *features++ = row[p * channels(l) + channel];
}

template class ConvEncoder<float>;
template class ConvEncoder<double>;

}  // namespace fastmeta::FASTMETA_ISA
