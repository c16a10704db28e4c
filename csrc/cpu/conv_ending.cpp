// See conv_ending.h.
#include "conv_ending.h"

#include <cmath>

#define INLINE __attribute__((always_inline))

namespace fastmeta::FASTMETA_ISA {
namespace {

// The pixels of one window, a vector of channels each, and the winner among them.
template <class R, int pool, int relu_>
struct Window {
  static constexpr int kPixels = pool * pool;
  Vector<R> t[kPixels], y, place;  // the winner's y, and its place

  INLINE inline Window(const EndingShape& e, const R* z, Vector<R> mean, Vector<R> scale, Vector<R> shift) {
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; p++) t[p] = load(z + offset(e, p)) - mean;
    y = t[0] * scale + shift, place = Vector<R>{};
#pragma GCC unroll 4
    for (int p = 1; p < kPixels; p++) {
      const Vector<R> other = t[p] * scale + shift, here = Vector<R>{} + R(p);
      place = other > y ? here : other == other ? place : here;  // a NaN wins
      y = other > y ? other : other == other ? y : other;
    }
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
  // What relu leaves of a gradient or tangent.
  INLINE inline Vector<R> gated(Vector<R> number) const { return relu_ ? (y <= Vector<R>{} ? Vector<R>{} : number) : number; }
};

// Calls f(c, mean, scale, shift) for every vector of channels.
template <class R, class F>
FASTMETA_INLINE void for_each_vector(const Norm<R>& norm, F&& f) {
  for (int64_t c = 0; c < norm.channels; c += kLanes<R>) f(c, load(norm.mean + c), load(norm.scale + c), load(norm.shift + c));
}

// Calls f(at, row, column) for every window of an image; at: of its first pixel in z.
template <int pool, class F>
FASTMETA_INLINE void for_each_window(const EndingShape& e, F&& f) {
  for (int64_t row = 0; row < e.out_height(); row++)
    for (int64_t column = 0; column < e.out_width(); column++) f((row * e.width + column) * pool * e.channels, row, column);
}

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
void add_statistics(const EndingShape& e, const R* z, bool first, const Norm<R>& norm) {
  const int64_t pixels = e.height * e.width;
  for (int64_t c = 0; c < e.channels; c += kLanes<R>) {
    if (first) {
      Vector<R> sum = {};
      for (int64_t i = 0; i < pixels; i++) sum += load(z + i * e.channels + c);
      store(norm.mean + c, sum / R(pixels));
      store(norm.sum + c, Vector<R>{}), store(norm.square + c, Vector<R>{});
    }
    const Vector<R> mean = load(norm.mean + c);
    Vector<R> sum = {}, square = {};
    for (int64_t i = 0; i < pixels; i++) {
      const Vector<R> t = load(z + i * e.channels + c) - mean;
      sum += t, square += t * t;
    }
    add(norm.sum + c, sum), add(norm.square + c, square);
  }
}

template <class R>
void finish_statistics(const ConvBlock& block, int64_t count, const R* gamma, const R* beta, const Norm<R>& norm) {
  for (int64_t c = 0; c < norm.channels; c++) {
    const bool real = c < block.out;
    const R off = block.norm ? norm.sum[c] / R(count) : R(0);
    const R var = block.norm ? norm.square[c] / R(count) - off * off : R(0);
    norm.mean[c] = block.norm ? norm.mean[c] + off : R(0);
    norm.s[c] = block.norm && real ? R(1 / std::sqrt((var > 0 || var != var ? double(var) : 0) + block.eps)) : R(0);
    norm.scale[c] = !block.norm ? R(1) : gamma ? gamma[c] * norm.s[c] : norm.s[c];
    norm.shift[c] = block.norm && beta ? beta[c] : R(0);
  }
}

template <class R>
void end_image(const EndingShape& e, const R* z, const Norm<R>& norm, R* out) {
  with_kind(e, [&](auto pool, auto relu) INLINE {
    for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
      for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        store(out + ended(e, row, column) + c, w.value());
      });
    });
  });
}

template <class R>
void add_gradients(const EndingShape& e, const R* z, const R* d, const Norm<R>& norm) {
  with_kind(e, [&](auto pool, auto relu) INLINE {
    for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
      Vector<R> sum = {}, product = {};
      for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        const Vector<R> g = w.gated(load(d + packed(e, row, column) + c));
        sum += g;
        product += g * w.of_winner([&](int p) INLINE { return w.t[p]; });
      });
      add(norm.dsum + c, sum), add(norm.dproduct + c, product);
    });
  });
}

template <class R>
void gradient_image(const EndingShape& e, int64_t count, const R* z, const R* d, const Norm<R>& norm, R* dz, R* db) {
  with_kind(e, [&](auto pool, auto relu) INLINE {
    for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
      const R each = count ? 1 / R(count) : R(0);
      const Vector<R> s = load(norm.s + c), rest = -scale * load(norm.dsum + c) * each;
      const Vector<R> of_t = -scale * s * s * load(norm.dproduct + c) * each;
      Vector<R> sum = {};
      const auto put = [&](int64_t row, int64_t column, Vector<R> t, Vector<R> g) INLINE {
        const Vector<R> value = scale * g + (of_t * t + rest);
        store(dz + row * e.dz_row + column * e.dz_pixel + c, value);
        sum += value;
      };
      for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        const Vector<R> g = w.gated(load(d + packed(e, row, column) + c));
#pragma GCC unroll 4
        for (int p = 0; p < w.kPixels; p++)
          put(row * pool.value + p / pool.value, column * pool.value + p % pool.value, w.t[p], w.if_winner(p, g));
      });
      for_each_rest<pool.value>(e, [&](int64_t row, int64_t column) INLINE {
        put(row, column, load(z + (row * e.width + column) * e.channels + c) - mean, Vector<R>{});
      });
      if (db) add(db + c, sum);
    });
  });
}

template <class R>
void add_tangents(const EndingShape& e, const R* z, const R* rz, const Norm<R>& norm, const Tangents<R>& r) {
  for (int64_t c = 0; c < e.channels; c += kLanes<R>) {
    const Vector<R> mean = load(norm.mean + c);
    Vector<R> sum = {}, product = {};
    for (int64_t i = 0; i < e.height * e.width; i++) {
      const Vector<R> tangent = load(rz + i * e.channels + c);
      sum += tangent, product += tangent * (load(z + i * e.channels + c) - mean);
    }
    add(r.sum + c, sum), add(r.product + c, product);
  }
}

template <class R>
void finish_tangents(int64_t count, const R* rgamma, const R* rbeta, const Norm<R>& norm, const Tangents<R>& r) {
  for (int64_t c = 0; c < norm.channels; c++) {
    const R s = norm.s[c], q = count ? s * r.product[c] / R(count) : R(0);  // mean of rz times the normalised z
    r.of_t[c] = (rgamma ? rgamma[c] * s : R(0)) - norm.scale[c] * s * q;
    r.of_one[c] = (rbeta ? rbeta[c] : R(0)) - (count ? norm.scale[c] * r.sum[c] / R(count) : R(0));
  }
}

template <class R>
void end_tangents(const EndingShape& e, const R* z, const R* rz, const Norm<R>& norm, const Tangents<R>& r, R* out) {
  with_kind(e, [&](auto pool, auto relu) INLINE {
    for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
      const Vector<R> of_t = load(r.of_t + c), of_one = load(r.of_one + c);
      for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        const Vector<R> t = w.of_winner([&](int p) INLINE { return w.t[p]; });
        const Vector<R> tangent = w.of_winner([&](int p) INLINE { return load(rz + at + c + w.offset(e, p)); });
        store(out + ended(e, row, column) + c, w.gated(of_t * t + scale * tangent + of_one));
      });
    });
  });
}

template <class R>
void add_gradient_tangents(const EndingShape& e, const R* z, const R* rz, const R* d, const R* rd, const Norm<R>& norm, const Tangents<R>& r) {
  with_kind(e, [&](auto pool, auto relu) INLINE {
    for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
      Vector<R> sum = {}, product = {};
      for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        const int64_t place = packed(e, row, column) + c;
        const Vector<R> g = w.gated(load(d + place)), rg = w.gated(load(rd + place));
        sum += rg;
        product += rg * w.of_winner([&](int p) INLINE { return w.t[p]; }) +
                   g * w.of_winner([&](int p) INLINE { return load(rz + at + c + w.offset(e, p)); });
      });
      add(r.rsum + c, sum), add(r.rproduct + c, product);
    });
  });
}

template <class R>
void finish_gradient_tangents(int64_t count, const Norm<R>& norm, const Tangents<R>& r, R* rgamma, R* rbeta) {
  for (int64_t c = 0; c < norm.channels; c++) {
    const R s = norm.s[c], scale = norm.scale[c], each = count ? 1 / R(count) : R(0);
    const R q = s * r.product[c] * each, rmean = r.sum[c] * each;
    const R a = norm.dsum[c] * each, b = s * norm.dproduct[c] * each;  // means of dy and of dy times the normalised z
    const R rgain = s * (r.rproduct[c] - rmean * norm.dsum[c] - s * q * norm.dproduct[c]);
    if (rgamma) rgamma[c] += rgain;
    if (rbeta) rbeta[c] += r.rsum[c];
    r.of_rz[c] = -scale * b * s;
    r.of_z[c] = s * (scale * b * s * q - r.of_t[c] * b - scale * rgain * each);
    r.rest[c] = scale * b * s * rmean - r.of_t[c] * a - scale * r.rsum[c] * each;
  }
}

template <class R>
void gradient_tangents(const EndingShape& e, const R* z, const R* rz, const R* d, const R* rd, const Norm<R>& norm,
                       const Tangents<R>& r, R* rdz, R* rdb) {
  with_kind(e, [&](auto pool, auto relu) INLINE {
    for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
      const Vector<R> of_t = load(r.of_t + c), of_rz = load(r.of_rz + c), of_z = load(r.of_z + c), rest = load(r.rest + c);
      Vector<R> sum = {};
      const auto put = [&](int64_t row, int64_t column, Vector<R> t, Vector<R> gradients) INLINE {
        const Vector<R> tangent = load(rz + (row * e.width + column) * e.channels + c);
        const Vector<R> value = gradients + of_rz * tangent + (of_z * t + rest);
        store(rdz + row * e.dz_row + column * e.dz_pixel + c, value);
        sum += value;
      };
      for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        const int64_t place = packed(e, row, column) + c;
        const Vector<R> g = w.gated(of_t * load(d + place) + scale * load(rd + place));
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
  template void add_statistics<R>(const EndingShape&, const R*, bool, const Norm<R>&);                                           \
  template void finish_statistics<R>(const ConvBlock&, int64_t, const R*, const R*, const Norm<R>&);                             \
  template void end_image<R>(const EndingShape&, const R*, const Norm<R>&, R*);                                                  \
  template void add_gradients<R>(const EndingShape&, const R*, const R*, const Norm<R>&);                                        \
  template void gradient_image<R>(const EndingShape&, int64_t, const R*, const R*, const Norm<R>&, R*, R*);                      \
  template void add_tangents<R>(const EndingShape&, const R*, const R*, const Norm<R>&, const Tangents<R>&);                     \
  template void finish_tangents<R>(int64_t, const R*, const R*, const Norm<R>&, const Tangents<R>&);                             \
  template void end_tangents<R>(const EndingShape&, const R*, const R*, const Norm<R>&, const Tangents<R>&, R*);                 \
  template void add_gradient_tangents<R>(const EndingShape&, const R*, const R*, const R*, const R*, const Norm<R>&,             \
                                         const Tangents<R>&);                                                                    \
  template void finish_gradient_tangents<R>(int64_t, const Norm<R>&, const Tangents<R>&, R*, R*);                                \
  template void gradient_tangents<R>(const EndingShape&, const R*, const R*, const R*, const R*, const Norm<R>&,                 \
                                     const Tangents<R>&, R*, R*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
