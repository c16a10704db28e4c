// See norm_relu_pool.h.
#include "inner/cpu/pool_window.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
void add_statistics(const ImageShape& e, const R* z, int64_t before, const Norm<R>& norm) {
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

template <class R>
void finish_statistics(const ConvBlock& block, int64_t count, const R* gamma, const R* beta, const R* lost, const Norm<R>& norm) {
  if (block.norm == ConvNorm::none) {
    for (int64_t c = 0; c < norm.channels; c++) norm.mean[c] = norm.shift[c] = norm.s[c] = 0, norm.scale[c] = 1;
    return;
  }
  for (int64_t c = block.out; c < norm.channels; c++) norm.s[c] = norm.scale[c] = norm.shift[c] = 0;  // padding
  with_group_means<1>(
      block, 1, [&](int64_t c, double* mean) { mean[0] = norm.mean[c]; },
      [&](int64_t c, const double* mean) {
        const double off = norm.mean[c] - mean[0];
        norm.square[c] = R(norm.square[c] + off * off * double(count));
        norm.shift[c] = R(mean[0]);
      });
  with_group_means<1>(
      block, count, [&](int64_t c, double* square) { square[0] = norm.square[c]; },
      [&](int64_t c, const double* var) {
        const double s = 1 / std::sqrt(var[0] + block.eps) + (lost ? 0 * double(lost[c]) : 0);  // gradients too: none is a number
        norm.mean[c] = norm.shift[c];
        norm.s[c] = R(s);
        norm.scale[c] = R(gamma ? gamma[c] * s : s);
        norm.shift[c] = (beta ? beta[c] : R(0)) + (lost ? 0 * lost[c] : R(0));
      });
}

template <class R>
void forward_image(const ImageShape& e, const R* z, const Norm<R>& norm, R* out, R* top) {
  const Vector<R> slope = slope_of<R>(e);
  with_any_kind(e, [&](auto pool, auto relu) INLINE {
    for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
      for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        store(out + out_place(e, row, column) + c, w.value(slope));
        store(top + dense_place(e, row, column) + c, w.winner_t());
      });
    });
  });
}

template <class R>
void add_gradients(const ImageShape& e, const R* top, const R* d, const Norm<R>& norm) {
  const ImageShape pooled = without_pool(e);
  const Vector<R> slope = slope_of<R>(e);
  with_any_kind(pooled, [&](auto, auto relu) INLINE {
    for_each_vector<R>(norm, [&](int64_t c, Vector<R>, Vector<R> scale, Vector<R> shift) INLINE {
      Sum<R> sum, product;
      for_each_window<1>(pooled, [&](int64_t at, int64_t row, int64_t) INLINE {
        const Vector<R> t = load(top + at + c);
        const Vector<R> g = gated<relu.value>(t * scale + shift, load(d + at + c), slope);
        sum.add(row, g), product.add(row, g * t);
      });
      add(norm.dsum + c, sum.all()), add(norm.dproduct + c, product.all());
    });
  });
}

template <class R>
void finish_gradients(const ConvBlock& block, int64_t count, const R* gamma, const Norm<R>& norm, R* dgamma, R* dbeta, R* dlost) {
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
    if (dlost) dlost[c] += 0 * (norm.of_t[c] + norm.rest[c]);
  });
}

template <class R>
void gradient_image(const ImageShape& e, const R* z, const R* d, const Norm<R>& norm, R* dz, R* db) {
  const Vector<R> slope = slope_of<R>(e);
  with_norm<true>(e, [&](auto pool, auto relu, auto normed) INLINE {
    const auto put = [&](int64_t row, int64_t column, int64_t c, Vector<R> scale, Vector<R> t, Vector<R> g) INLINE {
      const Vector<R> value = normed.value ? scale * g + (load(norm.of_t + c) * t + load(norm.rest + c)) : g;
      store(dz + (row * e.width + column) * e.channels + c, value);
      if (db) add(db + c, value);
    };
    for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
      for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        const Vector<R> g = gated<relu.value>(w.y, load(d + dense_place(e, row, column) + c), slope);
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

#define INSTANTIATE(R)                                                                                         \
  template void add_statistics<R>(const ImageShape&, const R*, int64_t, const Norm<R>&);                       \
  template void finish_statistics<R>(const ConvBlock&, int64_t, const R*, const R*, const R*, const Norm<R>&); \
  template void forward_image<R>(const ImageShape&, const R*, const Norm<R>&, R*, R*);                         \
  template void add_gradients<R>(const ImageShape&, const R*, const R*, const Norm<R>&);                       \
  template void finish_gradients<R>(const ConvBlock&, int64_t, const R*, const Norm<R>&, R*, R*, R*);          \
  template void gradient_image<R>(const ImageShape&, const R*, const R*, const Norm<R>&, R*, R*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
