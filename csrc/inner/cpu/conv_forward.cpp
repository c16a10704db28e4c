// conv_forward without a linear layer: the features of a batch, all threads on its images, and their gradients from what forward has
// kept. Images are taken in at most kChunks runs, whatever the threads; what is summed over images is summed in each run first, then over
// the runs in order, so that no bit depends on the threads. Batch norm divides a block into two passes over the images, forward (the
// convolution and the statistics; the rest) and back (the sums of the gradients; the gradients). 9 in out multiply-adds a pixel forward,
// twice that back.
#include <algorithm>
#include <vector>

#include "inner/cpu/conv_network.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

// Enough for the cores of a large machine, and few enough that the kernels' gradients, one of each run, stay in cache.
constexpr int64_t kChunks = 32;

template <class R>
class Features {
 public:
  // With a null `kept.base` and `work` it only measures.
  Features(const ConvFeatures<R>& c, const ConvLayout<R>& layout, bool backward, Scratch& kept, Scratch& work);

  void forward(int64_t t);
  void backward(int64_t t);

 private:
  // What a run of images sums of a block, beside its norm's sums.
  struct Sums {
    R *weight, *bias, *gamma, *beta;
  };

  const ConvBlock& net(int l) const { return layout_.net.block[l]; }
  bool is_batch(int l) const { return net(l).norm == ConvNorm::batch; }
  int64_t channels(int l) const { return layout_.block[l].out; }
  const Norm<R>& norm(int l, int64_t i) const { return of_sets(norms_[l], i); }
  template <class P>
  P* of(P* block, int l, ConvTensor tensor) const {
    const int64_t begin = layout_.block[l].begin[tensor];
    return begin < 0 ? nullptr : block + begin;
  }
  R* x(int l, int64_t i) const { return x_[l] + i * shapes_[size_t(l)].x_size; }
  R* z(int l, int64_t i) const { return z_[l] + i * shapes_[size_t(l)].z_size; }
  R* top(int l, int64_t i) const { return top_[l] + i * shapes_[size_t(l)].dense_size; }
  R* d(int l, int64_t i) const { return d_[l % 2] + i * shapes_[size_t(l)].dense_size; }

  // f(run, first image, end, scratch) for every run of images; scratch: of the thread, `bytes`.
  template <class F>
  void for_each_run(int l, int64_t bytes, F&& f) const;
  void load_image(const R* image, R* to) const;
  void load_gradients(int64_t t);
  void convolve_images(int l, int64_t t);
  void merge_statistics(int l, int64_t t);
  void hand_on(int l, int64_t i, R* row, int64_t t) const;
  void sum_gradients(int l);
  void gradients(int l, int64_t t);
  void add_sums(int l);

  const ConvFeatures<R>& c_;
  const ConvLayout<R>& layout_;
  const int64_t n_, images_, runs_;  // images_: of a run
  const int last_;
  std::vector<BlockShape<R>> shapes_;
  std::vector<Norm<R>> norms_[kMaxConvs], of_runs_;
  std::vector<Sums> sums_;
  R *x_[kMaxConvs], *z_[kMaxConvs], *top_[kMaxConvs], *d_[2] = {};
  R *theta_, *grad_;
  Loader<R, ConvNet> loader_;
};

template <class R>
Features<R>::Features(const ConvFeatures<R>& c, const ConvLayout<R>& layout, bool backward, Scratch& kept, Scratch& work)
    : c_(c),
      layout_(layout),
      n_(c.count),
      images_((c.count + kChunks - 1) / kChunks),
      runs_(images_ ? (c.count + images_ - 1) / images_ : 0),
      last_(layout.net.blocks - 1) {
  const bool keeps = c.keeps || backward;
  int64_t most[4] = {}, widest = 0, kernel = 0;  // x, z, dense; of all blocks
  for (int l = 0; l <= last_; l++) {
    shapes_.emplace_back(layout, l);
    const BlockShape<R>& s = shapes_.back();
    most[l % 2] = std::max(most[l % 2], s.x_size), most[2] = std::max(most[2], s.z_size), most[3] = std::max(most[3], s.dense_size);
    widest = std::max(widest, channels(l)), kernel = std::max(kernel, 3 * layout.block[l].taps() * channels(l));
  }
  R* shared[4] = {};  // where nothing is kept a block's memory is that of others
  for (int i = 0; i < 4 && !keeps; i++) shared[i] = work.take<R>(n_ * most[i]);
  for (int l = 0; l <= last_; l++) {
    const BlockShape<R>& s = shapes_[size_t(l)];
    x_[l] = keeps ? kept.take<R>(n_ * s.x_size) : shared[l % 2];
    z_[l] = keeps ? kept.take<R>(n_ * s.z_size) : shared[2];
    top_[l] = keeps ? kept.take<R>(n_ * s.dense_size) : shared[3];
    for (int64_t i = 0; i < sets(net(l), n_); i++) norms_[l].emplace_back(channels(l), keeps ? kept : work);
  }
  for (int64_t run = 0; run < runs_; run++) of_runs_.emplace_back(widest, work);
  theta_ = work.take<R>(layout.size);
  grad_ = backward ? work.take<R>(layout.gradient) : nullptr;
  if (!backward) return;
  for (R*& each : d_) each = work.take<R>(n_ * most[3]);
  for (int64_t run = 0; run < runs_; run++)
    sums_.push_back({work.take<R>(kernel), work.take<R>(widest), work.take<R>(widest), work.take<R>(widest)});
}

template <class R>
template <class F>
void Features<R>::for_each_run(int l, int64_t bytes, F&& f) const {
  const int64_t cost = images_ * 9 * net(l).in * net(l).out * shapes_[size_t(l)].pixels;
  parallel_ranges(runs_, 1 + kTaskGrain / (1 + cost), [&](Ranges& ranges) {
    int64_t begin, end;
    if (!ranges.next(begin, end)) return;
    Scratch scratch(thread_arena(size_t(bytes)));
    R* room = scratch.take<R>(0);
    if (bytes) std::memset(room, 0, size_t(bytes));
    do {
      for (int64_t run = begin; run < end; run++) f(run, run * images_, std::min(n_, (run + 1) * images_), room);
    } while (ranges.next(begin, end));
  });
}

// [in, height, width] -> channels last, zeros around.
template <class R>
void Features<R>::load_image(const R* image, R* to) const {
  const ConvBlock& b = net(0);
  const BlockShape<R>& s = shapes_[0];
  std::memset(to, 0, size_t(s.x_size) * sizeof(R));
  for (int64_t channel = 0; channel < b.in; channel++)
    for (int64_t row = 0; row < b.height; row++) {
      R* line = to + s.x_first + row * s.x_row + channel;
      for (int64_t column = 0; column < b.width; column++) line[column * b.in] = *image++;
    }
}

template <class R>
void Features<R>::convolve_images(int l, int64_t t) {
  const ConvBlock& b = net(l);
  const BlockShape<R>& s = shapes_[size_t(l)];
  const R *bias = is_batch(l) ? nullptr : of(theta_, l, kBias), *gamma = of(theta_, l, kGamma), *beta = of(theta_, l, kBeta);
  if (b.norm == ConvNorm::none) finish_statistics<R>(b, s.pixels, nullptr, nullptr, nullptr, norm(l, 0));
  for_each_run(l, s.out_size * int64_t(sizeof(R)), [&](int64_t run, int64_t begin, int64_t end, R* row) {
    for (int64_t i = begin; i < end; i++) {
      if (!l) load_image(c_.x + (t * n_ + i) * layout_.net.example_size(), x(0, i));
      convolve<R>(s.forward, {{x(l, i), of(theta_, l, kWeight)}}, bias, z(l, i));
      if (is_batch(l)) {
        add_statistics(s.image, z(l, i), i - begin, of_runs_[size_t(run)]);
        continue;
      }
      if (b.norm == ConvNorm::group) {
        add_statistics(s.image, z(l, i), 0, norm(l, i));
        finish_statistics(b, s.pixels, gamma, beta, static_cast<const R*>(nullptr), norm(l, i));
      }
      hand_on(l, i, row, t);
    }
  });
}

// Of the runs' means and sums of squares those of the batch; Chan et al. 1979.
template <class R>
void Features<R>::merge_statistics(int l, int64_t t) {
  const int64_t pixels = shapes_[size_t(l)].pixels;
  const Norm<R>& whole = norm(l, 0);
  const R* bias = of(theta_, l, kBias);
  int64_t place = 0, all = 0;  // among the channels of all batch norms
  for (int k = 0; k <= last_; k++) place += is_batch(k) && k < l ? net(k).out : 0, all += is_batch(k) ? net(k).out : 0;
  for (int64_t channel = 0; channel < channels(l); channel++) {
    double mean = 0, square = 0, count = 0;
    for (int64_t run = 0; run < runs_; run++) {
      const double more = double(pixels) * double(std::min(images_, n_ - run * images_));
      const double off = double(of_runs_[size_t(run)].mean[channel]) - mean;
      square += double(of_runs_[size_t(run)].square[channel]) + off * off * count * more / (count + more);
      count += more, mean += off * more / count;
    }
    whole.mean[channel] = R(mean), whole.square[channel] = R(square);
    if (!c_.mean || channel >= net(l).out) continue;
    c_.mean[t * all + place + channel] = R(mean + (bias ? double(bias[channel]) : 0));
    c_.var[t * all + place + channel] = R(square / count);
  }
  finish_statistics<R>(net(l), n_ * pixels, of(theta_, l, kGamma), of(theta_, l, kBeta), bias, whole);
}

// row: room for an image that the block hands on, where it is the last.
template <class R>
void Features<R>::hand_on(int l, int64_t i, R* row, int64_t t) const {
  const BlockShape<R>& s = shapes_[size_t(l)];
  if (l < last_) {
    R* next = x(l + 1, i);
    std::memset(next, 0, size_t(s.out_size) * sizeof(R));
    return forward_image(s.image, z(l, i), norm(l, i), next + s.out_first, top(l, i));
  }
  forward_image(s.image, z(l, i), norm(l, i), row, top(l, i));
  const int64_t pixels = s.image.out_height() * s.image.out_width(), out = net(l).out;
  R* to = c_.out + (t * n_ + i) * out * pixels;
  for (int64_t channel = 0; channel < out; channel++)
    for (int64_t p = 0; p < pixels; p++) *to++ = row[p * channels(l) + channel];
}

template <class R>
void Features<R>::forward(int64_t t) {
  loader_.load(layout_, c_.params, t, theta_);
  for (int l = 0; l <= last_; l++) {
    convolve_images(l, t);
    if (!is_batch(l)) continue;
    merge_statistics(l, t);
    for_each_run(l, shapes_[size_t(l)].out_size * int64_t(sizeof(R)), [&](int64_t, int64_t begin, int64_t end, R* row) {
      for (int64_t i = begin; i < end; i++) hand_on(l, i, row, t);
    });
  }
}

template <class R>
void Features<R>::load_gradients(int64_t t) {
  const BlockShape<R>& s = shapes_[size_t(last_)];
  const int64_t out = net(last_).out, pixels = s.image.out_height() * s.image.out_width();
  for_each_run(last_, 0, [&](int64_t, int64_t begin, int64_t end, R*) {
    for (int64_t i = begin; i < end; i++) {
      const R* from = c_.dout + (t * n_ + i) * out * pixels;
      std::memset(d(last_, i), 0, size_t(s.dense_size) * sizeof(R));
      for (int64_t channel = 0; channel < out; channel++)
        for (int64_t p = 0; p < pixels; p++) d(last_, i)[p * channels(last_) + channel] = *from++;
    }
  });
}

// The sums of the gradients that reach a batch norm, and its factors.
template <class R>
void Features<R>::sum_gradients(int l) {
  const BlockShape<R>& s = shapes_[size_t(l)];
  const Norm<R>& whole = norm(l, 0);
  const size_t bytes = size_t(channels(l)) * sizeof(R);
  for_each_run(l, 0, [&](int64_t run, int64_t begin, int64_t end, R*) {
    Norm<R> own = whole;
    own.dsum = of_runs_[size_t(run)].dsum, own.dproduct = of_runs_[size_t(run)].dproduct;
    std::memset(own.dsum, 0, bytes), std::memset(own.dproduct, 0, bytes);
    for (int64_t i = begin; i < end; i++) add_gradients(s.image, top(l, i), d(l, i), own);
  });
  for (int64_t channel = 0; channel < channels(l); channel++) {
    double sum = 0, product = 0;
    for (const Norm<R>& own : of_runs_) sum += double(own.dsum[channel]), product += double(own.dproduct[channel]);
    whole.dsum[channel] = R(sum), whole.dproduct[channel] = R(product);
  }
  finish_gradients<R>(net(l), n_ * s.pixels, of(theta_, l, kGamma), whole, of(grad_, l, kGamma), of(grad_, l, kBeta), of(grad_, l, kBias));
}

template <class R>
void Features<R>::gradients(int l, int64_t t) {
  const ConvBlock& b = net(l);
  const BlockShape<R>& s = shapes_[size_t(l)];
  const R *gamma = of(theta_, l, kGamma), *flipped = theta_ + layout_.block[l].flipped;
  const int64_t in = layout_.block[l].flipped_in(), size = b.in * b.height * b.width;
  const bool to_images = l || c_.dx;
  ConvShape shape = s.forward;
  shape.y_row = s.image.dz_row, shape.y_pixel = s.image.dz_pixel;  // where dz lies among its zeros
  if (b.norm == ConvNorm::none) finish_gradients<R>(b, s.pixels, nullptr, norm(l, 0), nullptr, nullptr, nullptr);
  const int64_t bytes = (s.dz_size + (l ? 0 : b.height * b.width * in)) * int64_t(sizeof(R));
  for_each_run(l, bytes, [&](int64_t run, int64_t begin, int64_t end, R* dz) {
    const Sums& sums = sums_[size_t(run)];
    std::memset(sums.weight, 0, size_t(3 * layout_.block[l].taps() * channels(l)) * sizeof(R));
    for (R* each : {sums.bias, sums.gamma, sums.beta}) std::memset(each, 0, size_t(channels(l)) * sizeof(R));
    for (int64_t i = begin; i < end; i++) {
      const Norm<R>& set = norm(l, i);
      if (b.norm == ConvNorm::group) {
        for (R* each : {set.dsum, set.dproduct}) std::memset(each, 0, size_t(channels(l)) * sizeof(R));
        add_gradients(s.image, top(l, i), d(l, i), set);
        finish_gradients(b, s.pixels, gamma, set, sums.gamma, sums.beta, static_cast<R*>(nullptr));
      }
      gradient_image(s.image, z(l, i), d(l, i), set, dz + s.dz_first, is_batch(l) ? nullptr : sums.bias);
      if (c_.dparams.any()) correlate<R>(shape, {{x(l, i), dz + s.dz_first}}, sums.weight);
      if (!to_images) continue;
      R* to = l ? d(l - 1, i) : dz + s.dz_size;
      convolve<R>(s.to_x, {{dz, flipped}}, nullptr, to);
      if (l) continue;
      R* image = c_.dx + (t * n_ + i) * size;
      for (int64_t channel = 0; channel < b.in; channel++)
        for (int64_t p = 0; p < b.height * b.width; p++) *image++ = to[p * in + channel];
    }
  });
}

// grad += the runs' sums.
template <class R>
void Features<R>::add_sums(int l) {
  const auto add_all = [&](R* to, int64_t count, R* Sums::* which) {
    if (!to) return;
    parallel_for(count, 4096, [&](int64_t begin, int64_t end) {
      for (const Sums& sums : sums_)
        for (int64_t k = begin; k < end; k++) to[k] += (sums.*which)[k];
    });
  };
  add_all(of(grad_, l, kWeight), 3 * layout_.block[l].taps() * channels(l), &Sums::weight);
  if (is_batch(l)) return;
  add_all(of(grad_, l, kBias), channels(l), &Sums::bias);
  add_all(of(grad_, l, kGamma), channels(l), &Sums::gamma);
  add_all(of(grad_, l, kBeta), channels(l), &Sums::beta);
}

template <class R>
void Features<R>::backward(int64_t t) {
  loader_.load(layout_, c_.params, t, theta_);
  std::memset(grad_, 0, size_t(layout_.gradient) * sizeof(R));
  load_gradients(t);
  for (int l = last_; l >= 0; l--) {
    if (is_batch(l)) sum_gradients(l);
    gradients(l, t);
    add_sums(l);
  }
  if (c_.dparams.any()) store_block(layout_, grad_, c_.dparams, t);
}

template <class R>
int64_t numbers(const Scratch& scratch) {
  return (scratch.used() + 63) / int64_t(sizeof(R)) + 64 / int64_t(sizeof(R));  // the memory may begin within a line
}
template <class R>
Scratch aligned(R* memory) {
  return Scratch(reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64));
}

}  // namespace

template <class R>
void conv_features_sizes(const ConvFeatures<R>& c) {
  const ConvLayout<R> layout(c.shape, c.params, c.dx);
  Scratch kept(nullptr), work(nullptr);
  const Features<R> measure(c, layout, c.dout, kept, work);
  *c.sizes = {numbers<R>(kept), numbers<R>(work)};
}

template <class R>
void conv_features_fwd(const ConvFeatures<R>& c) {
  const ConvLayout<R> layout(c.shape, c.params, false);
  for (int64_t t = 0; t < c.shape.tasks && c.count; t++) {
    Scratch kept = aligned(c.keeps ? c.kept + t * c.sizes->kept : nullptr), work = aligned(c.work);
    Features<R>(c, layout, false, kept, work).forward(t);
  }
}

template <class R>
void conv_features_bwd(const ConvFeatures<R>& c) {
  const ConvLayout<R> layout(c.shape, c.params, c.dx);
  for (int64_t t = 0; t < c.shape.tasks; t++) {
    Scratch kept = aligned(c.kept + t * c.sizes->kept), work = aligned(c.work);
    Features<R>(c, layout, true, kept, work).backward(t);
  }
}

#define INSTANTIATE(R)                                          \
  template void conv_features_sizes<R>(const ConvFeatures<R>&); \
  template void conv_features_fwd<R>(const ConvFeatures<R>&);   \
  template void conv_features_bwd<R>(const ConvFeatures<R>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
