// See conv_ending.h.
#include "conv_ending.h"

#include <cmath>

#define INLINE __attribute__((always_inline))

namespace fastmeta::FASTMETA_ISA {
namespace {

// What relu leaves of a gradient or tangent.
template <int relu_, class V>
FASTMETA_INLINE V gated(V y, V number) {
  return relu_ ? (y <= V{} ? V{} : number) : number;
}

// The pixels of one window, a vector of channels each, and the winner among them.
template <class R, int pool, int relu_>
struct Window {
  static constexpr int kPixels = pool * pool;
  Vector<R> t[kPixels], y, place;  // the winner's y, and its place

  INLINE inline Window(const EndingShape& e, const R* z, Vector<R> mean, Vector<R> scale, Vector<R> shift) {
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; p++) t[p] = load(z + offset(e, p)) - mean;
    y = t[0] * scale + shift, place = Vector<R>{};
    Vector<R> sum = y;
#pragma GCC unroll 4
    for (int p = 1; p < kPixels; p++) {
      const Vector<R> other = t[p] * scale + shift;
      place = other <= y ? place : Vector<R>{} + R(p);
      y = other <= y ? y : other;
      sum += other;
    }
    if (kPixels > 1) y = sum == sum ? y : sum;  // a NaN wins
  }
  INLINE static inline int64_t offset(const EndingShape& e, int p) { return (p / pool * e.width + p % pool) * e.channels; }

  // Of a number of each pixel, the winner's.
  template <class F>
  INLINE inline Vector<R> of_winner(F&& number) const {
    Vector<R> found = number(0);
#pragma GCC unroll 4
    for (int p = 1; p < kPixels; p++) found = place == Vector<R>{} + R(p) ? number(p) : found;
    return found;
  }
  INLINE inline Vector<R> if_winner(int p, Vector<R> number) const {
    return pool == 1 ? number : place == Vector<R>{} + R(p) ? number : Vector<R>{};
  }
  INLINE inline Vector<R> value() const { return relu_ ? relu<R>(y) : y; }
};

// Calls f(c, mean, scale, shift) for every vector of channels.
template <class R, class F>
FASTMETA_INLINE void for_each_vector(const Norm<R>& norm, F&& f) {
  for (int64_t c = 0; c < norm.channels; c += kLanes<R>) f(c, load(norm.mean + c), load(norm.scale + c), load(norm.shift + c));
}

// Calls f(at, row, column) for every window of an image; at: of its first pixel in z.
template <int pool, class F>
FASTMETA_INLINE void for_each_window(const EndingShape& e, F&& f) {
  for (int64_t row = 0; row < e.height / pool; row++)
    for (int64_t column = 0; column < e.width / pool; column++) f((row * e.width + column) * pool * e.channels, row, column);
}

// A sum of sums of rows, so that its error does not grow with the image.
template <class R>
struct Sum {
  Vector<R> total = {}, of_row = {};
  int64_t row = 0;
  INLINE inline void add(int64_t at_row, Vector<R> x) {
    if (at_row != row) total += of_row, of_row = Vector<R>{}, row = at_row;
    of_row += x;
  }
  INLINE inline Vector<R> all() const { return total + of_row; }
};

// Calls f(row, column) for every pixel that no window has.
template <int pool, class F>
FASTMETA_INLINE void for_each_rest(const EndingShape& e, F&& f) {
  for (int64_t row = 0; pool > 1 && row < e.height; row++)
    for (int64_t column = row < e.out_height() * pool ? e.out_width() * pool : 0; column < e.width; column++) f(row, column);
}

// Calls f(Size<pool>, Size<relu>).
template <class F>
FASTMETA_INLINE void with_kind(const EndingShape& e, F&& f) {
  if (e.pool == 2) e.relu ? f(Size<2>(), Size<1>()) : f(Size<2>(), Size<0>());
  else e.relu ? f(Size<1>(), Size<1>()) : f(Size<1>(), Size<0>());
}

template <class R>
FASTMETA_INLINE void add(R* to, Vector<R> x) {
  store(to, load(to) + x);
}

FASTMETA_INLINE int64_t ended(const EndingShape& e, int64_t row, int64_t column) { return row * e.out_row + column * e.channels; }
FASTMETA_INLINE int64_t packed(const EndingShape& e, int64_t row, int64_t column) {
  return (row * e.out_width() + column) * e.channels;
}

}  // namespace

template <class R>
void add_statistics(const EndingShape& e, const R* z, int64_t before, const Norm<R>& norm) {
  const R pixels = R(e.height * e.width);
  for (int64_t c = 0; c < e.channels; c += kLanes<R>) {
    Sum<R> sum, square;
    for_each_window<1>(e, [&](int64_t at, int64_t row, int64_t) INLINE { sum.add(row, load(z + at + c)); });
    const Vector<R> mean = sum.all() / pixels;
    for_each_window<1>(e, [&](int64_t at, int64_t row, int64_t) INLINE {
      const Vector<R> t = load(z + at + c) - mean;
      square.add(row, t * t);
    });
    const Vector<R> of_others = before ? load(norm.mean + c) : mean, off = mean - of_others;
    const R share = 1 / R(before + 1);
    store(norm.mean + c, of_others + off * share);
    store(norm.square + c, (before ? load(norm.square + c) : Vector<R>{}) + (square.all() + off * off * (pixels * R(before) * share)));
  }
}

// Calls f(c, means...) for every channel, with the means over its group of numbers(c), which are sums over `count` pixels.
template <int numbers_, class F, class G>
FASTMETA_INLINE void with_group_means(const ConvBlock& block, int64_t count, F&& numbers, G&& f) {
  const int64_t size = block.out / block.groups;
  for (int64_t first = 0; first < block.out; first += size) {
    double means[numbers_] = {};
    for (int64_t c = first; c < first + size; c++) {
      double of_channel[numbers_];
      numbers(c, of_channel);
      for (int k = 0; k < numbers_; k++) means[k] += of_channel[k] / (double(count) * double(size));
    }
    for (int64_t c = first; c < first + size; c++) f(c, means);
  }
}

template <class R>
void finish_statistics(const ConvBlock& block, int64_t count, const R* gamma, const R* beta, const Norm<R>& norm) {
  if (block.norm == ConvNorm::none) {
    for (int64_t c = 0; c < norm.channels; c++) norm.mean[c] = norm.shift[c] = norm.s[c] = 0, norm.scale[c] = 1;
    return;
  }
  for (int64_t c = block.out; c < norm.channels; c++) norm.s[c] = norm.scale[c] = norm.shift[c] = 0;  // padding
  with_group_means<1>(block, 1, [&](int64_t c, double* mean) { mean[0] = norm.mean[c]; }, [&](int64_t c, const double* mean) {
    const double off = norm.mean[c] - mean[0];
    norm.square[c] = R(norm.square[c] + off * off * double(count));
    norm.shift[c] = R(mean[0]);
  });
  with_group_means<1>(block, count, [&](int64_t c, double* square) { square[0] = norm.square[c]; }, [&](int64_t c, const double* var) {
    const double s = 1 / std::sqrt(var[0] + block.eps);
    norm.mean[c] = norm.shift[c];
    norm.s[c] = R(s);
    norm.scale[c] = R(gamma ? gamma[c] * s : s);
    norm.shift[c] = beta ? beta[c] : R(0);
  });
}

template <class R>
void end_image(const EndingShape& e, const R* z, const Norm<R>& norm, R* out, R* top) {
  with_kind(e, [&](auto pool, auto relu) INLINE {
    for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
      for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        store(out + ended(e, row, column) + c, w.value());
        store(top + packed(e, row, column) + c, w.of_winner([&](int p) INLINE { return w.t[p]; }));
      });
    });
  });
}

template <class R>
void add_gradients(const EndingShape& e, const R* top, const R* d, const Norm<R>& norm) {
  const EndingShape pooled{e.out_height(), e.out_width(), e.channels, 1, e.relu};
  with_kind(pooled, [&](auto pool, auto relu) INLINE {
    for_each_vector<R>(norm, [&](int64_t c, Vector<R>, Vector<R> scale, Vector<R> shift) INLINE {
      Sum<R> sum, product;
      for_each_window<1>(pooled, [&](int64_t at, int64_t row, int64_t) INLINE {
        const Vector<R> t = load(top + at + c);
        const Vector<R> g = gated<relu.value>(t * scale + shift, load(d + at + c));
        sum.add(row, g), product.add(row, g * t);
      });
      add(norm.dsum + c, sum.all()), add(norm.dproduct + c, product.all());
    });
  });
}

template <class R>
void finish_gradients(const ConvBlock& block, int64_t count, const R* gamma, const Norm<R>& norm, R* dgamma, R* dbeta) {
  for (int64_t c = 0; c < norm.channels; c++) norm.of_t[c] = norm.rest[c] = 0;
  if (block.norm == ConvNorm::none) return;
  const auto sums = [&](int64_t c, double* found) {
    const double gain = gamma ? gamma[c] : 1;
    found[0] = gain * norm.dsum[c], found[1] = gain * norm.dproduct[c];
  };
  with_group_means<2>(block, count, sums, [&](int64_t c, const double* means) {
    const double s = norm.s[c];
    if (dgamma) dgamma[c] += R(s * norm.dproduct[c]);
    if (dbeta) dbeta[c] += norm.dsum[c];
    norm.of_t[c] = R(-s * s * s * means[1]);
    norm.rest[c] = R(-s * means[0]);
  });
}

template <class R>
void gradient_image(const EndingShape& e, const R* z, const R* d, const Norm<R>& norm, R* dz, R* db) {
  with_kind(e, [&](auto pool, auto relu) INLINE {
    const auto put = [&](int64_t row, int64_t column, int64_t c, Vector<R> scale, Vector<R> t, Vector<R> g) INLINE {
      const Vector<R> value = scale * g + (load(norm.of_t + c) * t + load(norm.rest + c));
      store(dz + row * e.dz_row + column * e.dz_pixel + c, value);
      if (db) add(db + c, value);
    };
    for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
      for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        const Vector<R> g = gated<relu.value>(w.y, load(d + packed(e, row, column) + c));
#pragma GCC unroll 4
        for (int p = 0; p < w.kPixels; p++)
          put(row * pool.value + p / pool.value, column * pool.value + p % pool.value, c, scale, w.t[p], w.if_winner(p, g));
      });
    });
    for_each_rest<pool.value>(e, [&](int64_t row, int64_t column) INLINE {
      for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R>) INLINE {
        put(row, column, c, scale, load(z + (row * e.width + column) * e.channels + c) - mean, Vector<R>{});
      });
    });
  });
}

template <class R>
void add_tangents(const EndingShape& e, const R* z, const R* rz, const Norm<R>& norm, const Tangents<R>& r) {
  for (int64_t c = 0; c < e.channels; c += kLanes<R>) {
    const Vector<R> mean = load(norm.mean + c);
    Sum<R> sum, product;
    for_each_window<1>(e, [&](int64_t at, int64_t row, int64_t) INLINE {
      const Vector<R> tangent = load(rz + at + c);
      sum.add(row, tangent), product.add(row, tangent * (load(z + at + c) - mean));
    });
    add(r.sum + c, sum.all()), add(r.product + c, product.all());
  }
}

template <class R>
void finish_tangents(const ConvBlock& block, int64_t count, const R* rgamma, const R* rbeta, const Norm<R>& norm, const Tangents<R>& r) {
  for (int64_t c = 0; c < norm.channels; c++) r.mean[c] = r.along[c] = r.gain[c] = r.shift[c] = 0;
  if (block.norm == ConvNorm::none) return;
  const auto sums = [&](int64_t c, double* found) { found[0] = r.sum[c], found[1] = r.product[c]; };
  with_group_means<2>(block, count, sums, [&](int64_t c, const double* means) {
    const double s = norm.s[c];
    r.mean[c] = R(means[0]);
    r.along[c] = R(s * s * means[1]);
    r.gain[c] = rgamma ? R(rgamma[c] * s) : R(0);
    r.shift[c] = rbeta ? rbeta[c] : R(0);
  });
}

template <class R>
void end_tangents(const EndingShape& e, const R* z, const R* rz, const Norm<R>& norm, const Tangents<R>& r, R* out) {
  with_kind(e, [&](auto pool, auto relu) INLINE {
    for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
      const Vector<R> rmean = load(r.mean + c), along = load(r.along + c), gain = load(r.gain + c), rshift = load(r.shift + c);
      for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        const Vector<R> t = w.of_winner([&](int p) INLINE { return w.t[p]; });
        const Vector<R> rt = w.of_winner([&](int p) INLINE { return load(rz + at + c + w.offset(e, p)); }) - rmean - along * t;
        store(out + ended(e, row, column) + c, gated<relu.value>(w.y, gain * t + scale * rt + rshift));
      });
    });
  });
}

template <class R>
void add_gradient_tangents(const EndingShape& e, const R* z, const R* rz, const R* d, const R* rd, const Norm<R>& norm,
                           const Tangents<R>& r) {
  with_kind(e, [&](auto pool, auto relu) INLINE {
    for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
      const Vector<R> rmean = load(r.mean + c), along = load(r.along + c);
      Sum<R> sum, product;
      for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        const int64_t place = packed(e, row, column) + c;
        const Vector<R> g = gated<relu.value>(w.y, load(d + place)), rg = gated<relu.value>(w.y, load(rd + place));
        const Vector<R> t = w.of_winner([&](int p) INLINE { return w.t[p]; });
        const Vector<R> rt = w.of_winner([&](int p) INLINE { return load(rz + at + c + w.offset(e, p)); }) - rmean - along * t;
        sum.add(row, rg), product.add(row, rg * t + g * rt);
      });
      add(r.rsum + c, sum.all()), add(r.rproduct + c, product.all());
    });
  });
}

template <class R>
void finish_gradient_tangents(const ConvBlock& block, int64_t count, const R* gamma, const R* rgamma, const Norm<R>& norm,
                              const Tangents<R>& r, R* rdgamma, R* rdbeta) {
  for (int64_t c = 0; c < norm.channels; c++) r.of_d[c] = r.of_rt[c] = r.of_t[c] = r.rest[c] = 0;
  if (block.norm == ConvNorm::none) return;
  const auto sums = [&](int64_t c, double* found) {
    const double gain = gamma ? gamma[c] : 1, rgain = rgamma ? rgamma[c] : 0;
    found[0] = gain * norm.dsum[c], found[1] = gain * norm.dproduct[c];
    found[2] = rgain * norm.dsum[c] + gain * r.rsum[c], found[3] = rgain * norm.dproduct[c] + gain * r.rproduct[c];
  };
  with_group_means<4>(block, count, sums, [&](int64_t c, const double* means) {
    const double s = norm.s[c], along = r.along[c];
    if (rdgamma) rdgamma[c] += R(s * r.rproduct[c]);
    if (rdbeta) rdbeta[c] += r.rsum[c];
    r.of_d[c] = R(r.gain[c] - norm.scale[c] * along);
    r.of_rt[c] = R(-s * s * s * means[1]);
    r.of_t[c] = R(s * s * s * (along * means[1] - means[3]));
    r.rest[c] = R(s * (along * means[0] - means[2]));
  });
}

template <class R>
void gradient_tangents(const EndingShape& e, const R* z, const R* rz, const R* d, const R* rd, const Norm<R>& norm,
                       const Tangents<R>& r, R* rdz, R* rdb) {
  with_kind(e, [&](auto pool, auto relu) INLINE {
    for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
      const Vector<R> rmean = load(r.mean + c), along = load(r.along + c), of_d = load(r.of_d + c);
      const Vector<R> of_rt = load(r.of_rt + c), of_t = load(r.of_t + c), rest = load(r.rest + c);
      Vector<R> sum = {};
      const auto put = [&](int64_t row, int64_t column, Vector<R> t, Vector<R> gradients) INLINE {
        const Vector<R> rt = load(rz + (row * e.width + column) * e.channels + c) - rmean - along * t;
        const Vector<R> value = gradients + of_rt * rt + (of_t * t + rest);
        store(rdz + row * e.dz_row + column * e.dz_pixel + c, value);
        sum += value;
      };
      for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        const int64_t place = packed(e, row, column) + c;
        const Vector<R> g = gated<relu.value>(w.y, of_d * load(d + place) + scale * load(rd + place));
#pragma GCC unroll 4
        for (int p = 0; p < w.kPixels; p++)
          put(row * pool.value + p / pool.value, column * pool.value + p % pool.value, w.t[p], w.if_winner(p, g));
      });
      for_each_rest<pool.value>(e, [&](int64_t row, int64_t column) INLINE {
        put(row, column, load(z + (row * e.width + column) * e.channels + c) - mean, Vector<R>{});
      });
      if (rdb) add(rdb + c, sum);
    });
  });
}

#define INSTANTIATE(R)                                                                                                           \
  template void add_statistics<R>(const EndingShape&, const R*, int64_t, const Norm<R>&);                                          \
  template void finish_statistics<R>(const ConvBlock&, int64_t, const R*, const R*, const Norm<R>&);                             \
  template void end_image<R>(const EndingShape&, const R*, const Norm<R>&, R*, R*);                                              \
  template void add_gradients<R>(const EndingShape&, const R*, const R*, const Norm<R>&);                                        \
  template void finish_gradients<R>(const ConvBlock&, int64_t, const R*, const Norm<R>&, R*, R*);                                \
  template void gradient_image<R>(const EndingShape&, const R*, const R*, const Norm<R>&, R*, R*);                      \
  template void add_tangents<R>(const EndingShape&, const R*, const R*, const Norm<R>&, const Tangents<R>&);                     \
  template void finish_tangents<R>(const ConvBlock&, int64_t, const R*, const R*, const Norm<R>&, const Tangents<R>&);           \
  template void end_tangents<R>(const EndingShape&, const R*, const R*, const Norm<R>&, const Tangents<R>&, R*);                 \
  template void add_gradient_tangents<R>(const EndingShape&, const R*, const R*, const R*, const R*, const Norm<R>&,             \
                                         const Tangents<R>&);                                                                    \
  template void finish_gradient_tangents<R>(const ConvBlock&, int64_t, const R*, const R*, const Norm<R>&, const Tangents<R>&, R*, R*);\
  template void gradient_tangents<R>(const EndingShape&, const R*, const R*, const R*, const R*, const Norm<R>&,                 \
                                     const Tangents<R>&, R*, R*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
