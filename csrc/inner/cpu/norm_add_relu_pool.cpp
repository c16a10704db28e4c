// See norm_add_relu_pool.h.
#include "inner/cpu/norm_add_relu_pool.h"

#include "inner/cpu/pool_window.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

// A norm's factors of a vector of channels.
template <class R>
struct Factors {
  Vector<R> mean, scale, shift;
  INLINE inline Factors(const Norm<R>& norm, int64_t c)
      : mean(load(norm.mean + c)), scale(load(norm.scale + c)), shift(load(norm.shift + c)) {}
  INLINE inline Vector<R> y(Vector<R> t) const { return t * scale + shift; }
};

// The pixels of one window of both, and the winner of their sum.
template <class R, int pool>
struct SumWindow {
  static constexpr int kPixels = pool * pool;
  Vector<R> a[kPixels], b[kPixels], y, place;  // t of each; the winner's y, and its place

  INLINE inline SumWindow(const ImageShape& e, const R* za, const R* zb, const Factors<R>& of_a, const Factors<R>& of_b) {
    bool nan = false;
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; p++) {
      const int64_t at = (p / pool * e.width + p % pool) * e.channels;
      a[p] = load(za + at) - of_a.mean, b[p] = load(zb + at) - of_b.mean;
      const Vector<R> other = of_a.y(a[p]) + of_b.y(b[p]);
      if (p == 0) y = other, place = Vector<R>{};
      place = other > y ? Vector<R>{} + R(p) : place;
      y = other > y ? other : y;
      nan |= kPixels > 1 && any_nan<R>(other);
    }
    if (kPixels > 1 && __builtin_expect(nan, 0)) let_nan_win(of_a, of_b);
  }
  // As torch has it, the last NaN of a window.
  INLINE inline void let_nan_win(const Factors<R>& of_a, const Factors<R>& of_b) {
    for (int p = 0; p < kPixels; p++) {
      const Vector<R> other = of_a.y(a[p]) + of_b.y(b[p]);
      place = other == other ? place : Vector<R>{} + R(p);
      y = other == other ? y : other;
    }
  }
  INLINE inline Vector<R> of_winner(const Vector<R>* t) const {
    Vector<R> found = t[0];
#pragma GCC unroll 4
    for (int p = 1; p < kPixels; p++) found = place == Vector<R>{} + R(p) ? t[p] : found;
    return found;
  }
};

}  // namespace

template <class R>
void forward_sum(const ImageShape& e, const Summand<R>& a, const Summand<R>& b, R* out) {
  const Vector<R> slope = slope_of<R>(e);
  with_any_kind(e, [&](auto pool, auto relu) INLINE {
    for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
      for (int64_t c = 0; c < e.channels; c += kLanes<R>) {
        const SumWindow<R, pool.value> w(e, a.z + at + c, b.z + at + c, Factors<R>(a.norm, c), Factors<R>(b.norm, c));
        store(out + out_place(e, row, column) + c, activated<R, relu.value>(w.y, slope));
        store(a.top + dense_place(e, row, column) + c, w.of_winner(w.a));
        store(b.top + dense_place(e, row, column) + c, w.of_winner(w.b));
      }
    });
  });
}

template <class R>
void add_sum_gradients(const ImageShape& e, const Summand<R>& a, const Summand<R>& b, const R* d, const Norm<R>& sums) {
  const ImageShape pooled = without_pool(e);
  const Vector<R> slope = slope_of<R>(e);
  with_any_kind(pooled, [&](auto, auto relu) INLINE {
    for (int64_t c = 0; c < e.channels; c += kLanes<R>) {
      const Factors<R> of_a(a.norm, c), of_b(b.norm, c);
      Sum<R> sum, product;
      for_each_window<1>(pooled, [&](int64_t at, int64_t row, int64_t) INLINE {
        const Vector<R> t = load(a.top + at + c);
        const Vector<R> g = gated<relu.value>(of_a.y(t) + of_b.y(load(b.top + at + c)), load(d + at + c), slope);
        sum.add(row, g), product.add(row, g * t);
      });
      add(sums.dsum + c, sum.all()), add(sums.dproduct + c, product.all());
    }
  });
}

template <class R>
void sum_gradient(const ImageShape& e, const Summand<R>& a, const Summand<R>& b, const R* d, R* dz, R* db) {
  const Vector<R> slope = slope_of<R>(e);
  with_norm<true>(e, [&](auto pool, auto relu, auto normed) INLINE {
    const auto put = [&](int64_t row, int64_t column, int64_t c, Vector<R> scale, Vector<R> t, Vector<R> g) INLINE {
      const Vector<R> value = normed.value ? scale * g + (load(a.norm.of_t + c) * t + load(a.norm.rest + c)) : g;
      store(dz + (row * e.width + column) * e.channels + c, value);
      if (db) add(db + c, value);
    };
    for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
      for (int64_t c = 0; c < e.channels; c += kLanes<R>) {
        const Factors<R> of_a(a.norm, c);
        const SumWindow<R, pool.value> w(e, a.z + at + c, b.z + at + c, of_a, Factors<R>(b.norm, c));
        const Vector<R> g = gated<relu.value>(w.y, load(d + dense_place(e, row, column) + c), slope);
#pragma GCC unroll 4
        for (int p = 0; p < w.kPixels; p++) {
          const Vector<R> won = pool.value == 1 ? g : w.place == Vector<R>{} + R(p) ? g : Vector<R>{};
          put(row * pool.value + p / pool.value, column * pool.value + p % pool.value, c, of_a.scale, w.a[p], won);
        }
      }
    });
    for_each_rest<pool.value>(e, [&](int64_t row, int64_t column) INLINE {
      for (int64_t c = 0; c < e.channels; c += kLanes<R>) {
        const Vector<R> t = load(a.z + (row * e.width + column) * e.channels + c) - load(a.norm.mean + c);
        put(row, column, c, load(a.norm.scale + c), t, Vector<R>{});
      }
    });
  });
}

#define INSTANTIATE(R)                                                                                                   \
  template void forward_sum<R>(const ImageShape&, const Summand<R>&, const Summand<R>&, R*);                             \
  template void add_sum_gradients<R>(const ImageShape&, const Summand<R>&, const Summand<R>&, const R*, const Norm<R>&); \
  template void sum_gradient<R>(const ImageShape&, const Summand<R>&, const Summand<R>&, const R*, R*, R*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
