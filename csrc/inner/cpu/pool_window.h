// What the passes over a convolution's outputs share (norm_relu_pool.h): windows and their winners, loops, sums.
#pragma once
#include <cmath>

#include "inner/cpu/norm_relu_pool.h"

#define INLINE __attribute__((always_inline))

namespace fastmeta::FASTMETA_ISA {

// What relu_ (0: none, 1: relu, 2: leaky relu) leaves of a gradient or tangent.
template <int relu_, class V>
FASTMETA_INLINE V gated(V y, V number, V slope = V{}) {
  return relu_ == 2 ? (y > V{} ? number : slope * number) : relu_ ? (y <= V{} ? V{} : number) : number;
}
// And of a number.
template <class R, int relu_>
FASTMETA_INLINE Vector<R> activated(Vector<R> y, Vector<R> slope) {
  return relu_ == 2 ? (y > Vector<R>{} ? y : slope * y) : relu_ ? relu<R>(y) : y;
}
template <class R>
FASTMETA_INLINE Vector<R> slope_of(const ImageShape& e) {
  return Vector<R>{} + R(e.slope);
}

// The pixels of one window, a vector of channels each, and the winner among them.
template <class R, int pool, int relu_>
struct Window {
  static constexpr int kPixels = pool * pool;
  Vector<R> t[kPixels], y, place;  // the winner's y, and its place

  INLINE inline Window(const ImageShape& e, const R* z, Vector<R> mean, Vector<R> scale, Vector<R> shift) {
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; p++) t[p] = load(z + offset(e, p)) - mean;
    y = t[0] * scale + shift, place = Vector<R>{};
    Vector<R> sum = y;
#pragma GCC unroll 4
    for (int p = 1; p < kPixels; p++) {
      const Vector<R> other = t[p] * scale + shift;
      place = other > y ? Vector<R>{} + R(p) : place;
      y = other > y ? other : y;
      sum += other;
    }
    if (kPixels > 1 && __builtin_expect(any_nan<R>(sum), 0)) let_nan_win(scale, shift);
  }
  // As torch has it, the last NaN of a window.
  INLINE inline void let_nan_win(Vector<R> scale, Vector<R> shift) {
    for (int p = 0; p < kPixels; p++) {
      const Vector<R> other = t[p] * scale + shift;
      place = other == other ? place : Vector<R>{} + R(p);
      y = other == other ? y : other;
    }
  }
  INLINE static inline int64_t offset(const ImageShape& e, int p) { return (p / pool * e.width + p % pool) * e.channels; }

  // Of a number of each pixel, the winner's.
  template <class F>
  INLINE inline Vector<R> of_winner(F&& number) const {
    Vector<R> found = number(0);
#pragma GCC unroll 4
    for (int p = 1; p < kPixels; p++) found = place == Vector<R>{} + R(p) ? number(p) : found;
    return found;
  }
  INLINE inline Vector<R> winner_t() const {
    return of_winner([&](int p) INLINE { return t[p]; });
  }
  INLINE inline Vector<R> if_winner(int p, Vector<R> number) const {
    return pool == 1 ? number : place == Vector<R>{} + R(p) ? number : Vector<R>{};
  }
  INLINE inline Vector<R> value(Vector<R> slope) const { return activated<R, relu_>(y, slope); }
};

// Calls f(c, mean, scale, shift) for every vector of channels.
template <class R, class F>
FASTMETA_INLINE void for_each_vector(const Norm<R>& norm, F&& f) {
  for (int64_t c = 0; c < norm.channels; c += kLanes<R>) f(c, load(norm.mean + c), load(norm.scale + c), load(norm.shift + c));
}

// Calls f(at, row, column) for every window of an image; at: of its first pixel in z.
template <int pool, class F>
FASTMETA_INLINE void for_each_window(const ImageShape& e, F&& f) {
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
FASTMETA_INLINE void for_each_rest(const ImageShape& e, F&& f) {
  for (int64_t row = 0; pool > 1 && row < e.height; row++)
    for (int64_t column = row < e.out_height() * pool ? e.out_width() * pool : 0; column < e.width; column++) f(row, column);
}

// Calls f(Size<pool>, Size<relu>).
template <class F>
FASTMETA_INLINE void with_kind(const ImageShape& e, F&& f) {
  if (e.pool == 2) e.relu ? f(Size<2>(), Size<1>()) : f(Size<2>(), Size<0>());
  else e.relu ? f(Size<1>(), Size<1>()) : f(Size<1>(), Size<0>());
}

// The same, with relu 2 for leaky relu.
template <class F>
FASTMETA_INLINE void with_any_kind(const ImageShape& e, F&& f) {
  if (!e.relu || e.slope == 0) return with_kind(e, f);
  e.pool == 2 ? f(Size<2>(), Size<2>()) : f(Size<1>(), Size<2>());
}

// Calls f(Size<pool>, Size<relu>, Size<norm>): where there is no norm, its factors of 0 would make NaN of an infinity.
template <bool leaky = false, class F>
FASTMETA_INLINE void with_norm(const ImageShape& e, F&& f) {
  const auto split = [&](auto pool, auto relu) INLINE { e.norm ? f(pool, relu, Size<1>()) : f(pool, relu, Size<0>()); };
  if constexpr (leaky) with_any_kind(e, split);
  else with_kind(e, split);
}

// The image that is left of e, of which each window is a pixel.
inline ImageShape without_pool(const ImageShape& e) {
  ImageShape left = e;
  left.height = e.out_height(), left.width = e.out_width(), left.pool = 1;
  return left;
}

template <class R>
FASTMETA_INLINE void add(R* to, Vector<R> x) {
  store(to, load(to) + x);
}

FASTMETA_INLINE int64_t out_place(const ImageShape& e, int64_t row, int64_t column) { return row * e.out_row + column * e.channels; }
FASTMETA_INLINE int64_t dense_place(const ImageShape& e, int64_t row, int64_t column) {
  return (row * e.out_width() + column) * e.channels;
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

}  // namespace fastmeta::FASTMETA_ISA
