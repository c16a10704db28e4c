// A tangent is written with an r before it.
//
// Let m() be the mean over a set, t = z - m(z), u = s t, g = gamma dy. Then y = gamma u + beta, dz = s P with
// P = g - m(g) - u m(g u). Since s^-2 = m(t^2) + eps and m(t) = 0, rs = -s^3 m(t rz). With along = s^2 m(t rz):
//   rs = -s along                             ru = s rz - s m(rz) + rs t = s rt,  rt = rz - m(rz) - along t
//   ry = rgamma u + gamma ru + rbeta = gain t + scale rt + rbeta,                 gain = s rgamma, scale = s gamma
//   rdgamma = sum(rdy u + dy ru) = s sum(rdy t + dy rt)                           rdbeta = sum rdy
//   rdz = rs P + s rP,  rP = rg - m(rg) - ru m(g u) - u m(rg u + g ru),           rg = rgamma dy + gamma rdy
// and collected by dy, rdy, rt, t and 1 (rs P = -along dz is the part with `along`):
//   rdz = (gain - scale along) dy + scale rdy - s^3 m(g t) rt + s^3 (along m(g t) - m(rg t + g rt)) t + s (along m(g) - m(rg))
#include "inner/cpu/norm_relu_pool_tangents.h"

#include "inner/cpu/pool_window.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
void add_tangents(const ImageShape& e, const R* z, const R* rz, const Norm<R>& norm, const Tangents<R>& r) {
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
void finish_tangents(const ConvBlock& block, int64_t count, const R* rgamma, const R* rbeta, const R* rlost, const Norm<R>& norm,
                     const Tangents<R>& r) {
  for (int64_t c = 0; c < norm.channels; c++) r.mean[c] = r.along[c] = r.gain[c] = r.shift[c] = 0;
  if (block.norm == ConvNorm::none) return;
  const auto sums = [&](int64_t c, double* found) { found[0] = r.sum[c], found[1] = r.product[c]; };
  with_group_means<2>(block, count, sums, [&](int64_t c, const double* means) {
    const double s = norm.s[c];
    r.mean[c] = R(means[0]);
    r.along[c] = R(s * s * means[1]);
    r.gain[c] = rgamma ? R(rgamma[c] * s) : R(0);
    r.shift[c] = (rbeta ? rbeta[c] : R(0)) + (rlost ? 0 * rlost[c] : R(0));
  });
}

template <class R>
void forward_tangents(const ImageShape& e, const R* z, const R* rz, const Norm<R>& norm, const Tangents<R>& r, R* out) {
  with_norm(e, [&](auto pool, auto relu, auto normed) INLINE {
    for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
      const Vector<R> rmean = load(r.mean + c), along = load(r.along + c), gain = load(r.gain + c), rshift = load(r.shift + c);
      for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        const Vector<R> t = w.winner_t(), tangent = w.of_winner([&](int p) INLINE { return load(rz + at + c + w.offset(e, p)); });
        const Vector<R> ry = normed.value ? gain * t + scale * (tangent - rmean - along * t) + rshift : tangent;
        store(out + out_place(e, row, column) + c, gated<relu.value>(w.y, ry));
      });
    });
  });
}

template <class R>
void add_gradient_tangents(const ImageShape& e, const R* z, const R* rz, const R* d, const R* rd, const Norm<R>& norm,
                           const Tangents<R>& r) {
  with_kind(e, [&](auto pool, auto relu) INLINE {
    for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
      const Vector<R> rmean = load(r.mean + c), along = load(r.along + c);
      Sum<R> sum, product;
      for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        const int64_t place = dense_place(e, row, column) + c;
        const Vector<R> g = gated<relu.value>(w.y, load(d + place)), rg = gated<relu.value>(w.y, load(rd + place));
        const Vector<R> t = w.winner_t();
        const Vector<R> rt = w.of_winner([&](int p) INLINE { return load(rz + at + c + w.offset(e, p)); }) - rmean - along * t;
        sum.add(row, rg), product.add(row, rg * t + g * rt);
      });
      add(r.rsum + c, sum.all()), add(r.rproduct + c, product.all());
    });
  });
}

template <class R>
void finish_gradient_tangents(const ConvBlock& block, int64_t count, const R* gamma, const R* rgamma, const Norm<R>& norm,
                              const Tangents<R>& r, R* rdgamma, R* rdbeta, R* rdlost) {
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
    if (rdlost) rdlost[c] += 0 * (r.of_t[c] + r.rest[c]);
  });
}

template <class R>
void gradient_tangents(const ImageShape& e, const R* z, const R* rz, const R* d, const R* rd, const Norm<R>& norm, const Tangents<R>& r,
                       R* rdz, R* rdb) {
  with_norm(e, [&](auto pool, auto relu, auto normed) INLINE {
    for_each_vector<R>(norm, [&](int64_t c, Vector<R> mean, Vector<R> scale, Vector<R> shift) INLINE {
      const Vector<R> rmean = load(r.mean + c), along = load(r.along + c), of_d = load(r.of_d + c);
      const Vector<R> of_rt = load(r.of_rt + c), of_t = load(r.of_t + c), rest = load(r.rest + c);
      Vector<R> sum = {};
      const auto put = [&](int64_t row, int64_t column, Vector<R> t, Vector<R> gradients) INLINE {
        const Vector<R> rt = load(rz + (row * e.width + column) * e.channels + c) - rmean - along * t;
        const Vector<R> value = normed.value ? gradients + of_rt * rt + (of_t * t + rest) : gradients;
        store(rdz + (row * e.width + column) * e.channels + c, value);
        sum += value;
      };
      for_each_window<pool.value>(e, [&](int64_t at, int64_t row, int64_t column) INLINE {
        const Window<R, pool.value, relu.value> w(e, z + at + c, mean, scale, shift);
        const int64_t place = dense_place(e, row, column) + c;
        const Vector<R> tangent = load(rd + place);
        const Vector<R> g = gated<relu.value>(w.y, normed.value ? of_d * load(d + place) + scale * tangent : tangent);
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

#define INSTANTIATE(R)                                                                                                                   \
  template void add_tangents<R>(const ImageShape&, const R*, const R*, const Norm<R>&, const Tangents<R>&);                              \
  template void finish_tangents<R>(const ConvBlock&, int64_t, const R*, const R*, const R*, const Norm<R>&, const Tangents<R>&);         \
  template void forward_tangents<R>(const ImageShape&, const R*, const R*, const Norm<R>&, const Tangents<R>&, R*);                      \
  template void add_gradient_tangents<R>(const ImageShape&, const R*, const R*, const R*, const R*, const Norm<R>&, const Tangents<R>&); \
  template void finish_gradient_tangents<R>(const ConvBlock&, int64_t, const R*, const R*, const Norm<R>&, const Tangents<R>&, R*, R*,   \
                                            R*);                                                                                         \
  template void gradient_tangents<R>(const ImageShape&, const R*, const R*, const R*, const R*, const Norm<R>&, const Tangents<R>&, R*, R*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
