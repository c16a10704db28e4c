// The tangents of conv_norm.cuh, forward and back.
#pragma once
#include "inner/cuda/conv_norm.cuh"

namespace fastmeta::cuda {

// Of a set, after tangents forward.
template <class R>
__device__ __forceinline__ NormTangent<R> tangent_of(const Set<R>& set) {
  const R* of = set.c.rstatistics + set.index * 2;
  return set.shape.norm ? NormTangent<R>{of[0], of[1]} : NormTangent<R>{0, 0};
}

template <class R>
__device__ __forceinline__ NormTangent<R> found_tangent(const Set<R>& set) {
  const NormArguments<R>& c = set.c;
  if (!c.sums) {
    const Channel<R> any = set.channel(0);  // mean and s
    const R mean = set.mean(set.sum_of_pixels([&](int64_t e) { return c.rz[e]; }));
    return {mean, any.s * set.mean(set.sum_of_pixels([&](int64_t e) { return (c.rz[e] - mean) * any.u(c.z[e]); }))};
  }
  const R mean = set.sum_of_tiles([&](int t, R count) { return count * set.of_tile(t, 0); }) / set.numbers();
  const auto product = [&](int t, R) { return set.of_tile(t, 1) + (set.of_tile(t, 0) - mean) * set.of_tile(t, 2); };
  return {mean, set.s * set.sum_of_tiles(product) / set.numbers()};
}

template <class R>
__global__ void __launch_bounds__(kNormThreads, 2) norm_tangent_kernel(const __grid_constant__ NormArguments<R> c) {
  FASTMETA_SHARED(NormPartials<R>, partials);
  Set<R> set(c, partials.of_warp);
  set.load_statistics();
  NormTangent<R> tangent{0, 0};
  if (c.shape.norm) {
    tangent = found_tangent(set);
    if (set.speaks()) c.rstatistics[set.index * 2] = tangent.mean, c.rstatistics[set.index * 2 + 1] = tangent.along;
  }
  const R *vgamma = c.vgamma.of(set.task), *vbeta = c.vbeta.of(set.task);
  set.each_plane([&](int i, int64_t plane) {
    const Channel<R> channel = set.channel(i);
    const int64_t first = plane * c.shape.windows();
    const auto put = [&](int w, const Winner<R>& won, R rz) {
      R ry = channel.gamma * tangent.ru(channel, won.z, rz);
      if (vgamma) ry += vgamma[i] * channel.u(won.z);
      if (vbeta) ry += vbeta[i];
      c.out[first + w] = won.open ? ry : R(0);
    };
    const R *z = c.z + plane * c.shape.pixels(), *rz = c.rz + plane * c.shape.pixels();
    if (!c.won) return set.each_window(z, channel, [&](int w, const Winner<R>& won) { put(w, won, rz[won.at]); });
    for (int w = threadIdx.x % kWarp; w < c.shape.windows(); w += kWarp) {
      const R won = c.won[first + w];
      put(w, {w, won, channel.open(c.shape.relu, won)}, c.rwon[first + w]);
    }
  });
}

template <class R>
struct BackSums {
  R e = 0, eu = 0, re = 0, reu = 0, eru = 0;  // means
};

// Of the sums of tiles, and those of the gradients: dgamma, dbeta.
template <class R>
__device__ __forceinline__ BackSums<R> sums_of_tiles(const Set<R>& set) {
  const NormArguments<R>& c = set.c;
  const R* vgamma = c.vgamma.of(set.task);
  const R change = vgamma ? vgamma[set.set] : R(0), gamma = set.channel(set.set).gamma;
  const R rdy = set.sum_of_tiles(0), rdyu = set.sum_of_tiles(1), dyru = set.sum_of_tiles(2);
  if (set.speaks()) c.of_beta[set.index] = rdy, c.of_gamma[set.index] = rdyu + dyru;
  const R dy = c.dbeta[set.index], dyu = c.dgamma[set.index], count = set.numbers();
  return {gamma * dy / count, gamma * dyu / count, (gamma * rdy + change * dy) / count, (gamma * rdyu + change * dyu) / count,
          gamma * dyru / count};
}

// Of a set; and those of its planes, or of the channel, into their arrays.
template <class R>
__device__ __forceinline__ BackSums<R> sums_of_tangents(const Set<R>& set, const NormTangent<R>& tangent) {
  const NormArguments<R>& c = set.c;
  const R* vgamma = c.vgamma.of(set.task);
  BackSums<R> of;
  R all_rdy = 0, all_product = 0;
  set.each_plane([&](int i, int64_t plane) {
    const Channel<R> channel = set.channel(i);
    const R *z = c.z + plane * c.shape.pixels(), *rz = c.rz + plane * c.shape.pixels();
    const int64_t first = plane * c.shape.windows();
    const R change = vgamma ? vgamma[i] : R(0);
    R of_rdy = 0, of_product = 0;
    set.each_window(z, channel, [&](int w, const Winner<R>& won) {
      const R dy = won.open ? c.d[first + w] : R(0), rdy = won.open ? c.rd[first + w] : R(0);
      const R u = channel.u(won.z), ru = tangent.ru(channel, won.z, rz[won.at]);
      const R e = channel.gamma * dy, re = channel.gamma * rdy + change * dy;
      of_rdy += rdy;
      of_product += rdy * u + dy * ru;
      of.e += e, of.eu += e * u, of.re += re, of.reu += re * u, of.eru += e * ru;
    });
    all_rdy += of_rdy;
    all_product += of_product;
    if (set.of_channel()) return;
    set.put(c.of_beta, plane, of_rdy);
    set.put(c.of_gamma, plane, of_product);
  });
  if (set.of_channel()) {
    all_rdy = block_sum(set.partial, all_rdy), all_product = block_sum(set.partial, all_product);
    if (set.speaks()) c.of_beta[set.index] = all_rdy, c.of_gamma[set.index] = all_product;
  }
  return {set.mean(of.e), set.mean(of.eu), set.mean(of.re), set.mean(of.reu), set.mean(of.eru)};
}

template <class R>
__global__ void __launch_bounds__(kNormThreads, 2) norm_tangent_back_kernel(const __grid_constant__ NormArguments<R> c) {
  FASTMETA_SHARED(NormPartials<R>, partials);
  Set<R> set(c, partials.of_warp);
  set.load_statistics();
  const NormTangent<R> tangent = tangent_of(set);
  const R* vgamma = c.vgamma.of(set.task);
  BackSums<R> of;
  if (c.shape.norm) of = c.sums ? sums_of_tiles(set) : sums_of_tangents(set, tangent);
  set.each_plane([&](int i, int64_t plane) {
    const Channel<R> channel = set.channel(i);
    const int64_t first = plane * c.shape.windows(), pixels = plane * c.shape.pixels();
    const R change = vgamma ? vgamma[i] : R(0);
    R sum = 0;
    set.each_pixel(c.z + pixels, channel, [&](int at, int w) {
      const R dy = w >= 0 ? c.d[first + w] : R(0);
      R rdz = w >= 0 ? channel.gamma * c.rd[first + w] : R(0);
      if (w >= 0 && vgamma) rdz += change * dy;
      if (c.shape.norm) {
        const R z = c.z[pixels + at], u = channel.u(z);
        rdz = channel.s * (rdz - of.re - u * (of.reu + of.eru) - tangent.ru(channel, z, c.rz[pixels + at]) * of.eu);
        rdz -= tangent.along * (channel.s * (channel.gamma * dy - of.e - u * of.eu));  // dz: four flops for a number from HBM
      }
      c.out[pixels + at] = rdz;
      sum += rdz;
    });
    set.put(c.of_bias, plane, c.shape.loses_bias() ? 0 * sum : sum);  // no number stays none
  });
}

}  // namespace fastmeta::cuda
