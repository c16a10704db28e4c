// The tangents of conv_norm.cuh, forward and back.
#pragma once
#include "inner/cuda/conv_norm.cuh"

namespace fastmeta::cuda {

// ru of a pixel.
template <class R>
struct NormTangent {
  R mean, along;

  __device__ NormTangent(const NormArguments<R>& c)
      : mean(c.shape.norm ? c.rstatistics[int64_t(blockIdx.x) * 2] : R(0)),
        along(c.shape.norm ? c.rstatistics[int64_t(blockIdx.x) * 2 + 1] : R(0)) {}
  __device__ __forceinline__ R ru(const Channel<R>& channel, R z, R rz) const {
    return channel.s * (rz - mean) - (along == 0 ? R(0) : channel.u(z) * along);
  }
};

template <class R>
__global__ void __launch_bounds__(kNormThreads, 2) norm_tangent_kernel(const __grid_constant__ NormArguments<R> c) {
  FASTMETA_SHARED(NormPartials<R>, partials);
  const Set<R> set(c, partials.of_warp);
  if (c.shape.norm) {
    const Channel<R> any = set.channel(0);  // mean and s
    const R mean = set.mean(set.sum_of_pixels([&](int64_t e) { return c.rz[e]; }));
    const R product = set.mean(set.sum_of_pixels([&](int64_t e) { return (c.rz[e] - mean) * any.u(c.z[e]); }));
    R* to = c.rstatistics + int64_t(blockIdx.x) * 2;
    if (threadIdx.x == 0) to[0] = mean, to[1] = any.s * product;
    __syncthreads();
  }
  const NormTangent<R> tangent(c);
  const R *vgamma = c.vgamma.of(set.task), *vbeta = c.vbeta.of(set.task);
  set.each_plane([&](int i, int64_t plane) {
    const Channel<R> channel = set.channel(i);
    const R *z = c.z + plane * c.shape.pixels(), *rz = c.rz + plane * c.shape.pixels();
    set.each_window(z, channel, [&](int w, const Winner<R>& won) {
      R ry = channel.gamma * tangent.ru(channel, won.z, rz[won.at]);
      if (vgamma) ry += vgamma[i] * channel.u(won.z);
      if (vbeta) ry += vbeta[i];
      c.out[plane * c.shape.windows() + w] = won.open ? ry : R(0);
    });
  });
}

template <class R>
struct BackSums {
  R eu = 0, re = 0, reu = 0, eru = 0;
};

// Of a set; and those of its planes into their arrays.
template <class R>
__device__ __forceinline__ BackSums<R> sums_of_tangents(const Set<R>& set, const NormTangent<R>& tangent) {
  const NormArguments<R>& c = set.c;
  const R* vgamma = c.vgamma.of(set.task);
  BackSums<R> of;
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
      of.eu += e * u, of.re += re, of.reu += re * u, of.eru += e * ru;
    });
    set.put(c.of_beta, plane, of_rdy);
    set.put(c.of_gamma, plane, of_product);
  });
  return {set.mean(of.eu), set.mean(of.re), set.mean(of.reu), set.mean(of.eru)};
}

template <class R>
__global__ void __launch_bounds__(kNormThreads, 2) norm_tangent_back_kernel(const __grid_constant__ NormArguments<R> c) {
  FASTMETA_SHARED(NormPartials<R>, partials);
  const Set<R> set(c, partials.of_warp);
  const NormTangent<R> tangent(c);
  const R* vgamma = c.vgamma.of(set.task);
  BackSums<R> of;
  if (c.shape.norm) of = sums_of_tangents(set, tangent);
  set.each_plane([&](int i, int64_t plane) {
    const Channel<R> channel = set.channel(i);
    const int64_t first = plane * c.shape.windows(), pixels = plane * c.shape.pixels();
    const R change = vgamma ? vgamma[i] : R(0);
    R sum = 0;
    set.each_pixel(c.z + pixels, channel, [&](int at, int w) {
      R rdz = w >= 0 ? channel.gamma * c.rd[first + w] : R(0);
      if (w >= 0 && vgamma) rdz += change * c.d[first + w];
      if (c.shape.norm) {
        const R z = c.z[pixels + at];
        rdz = channel.s * (rdz - of.re - channel.u(z) * (of.reu + of.eru) - tangent.ru(channel, z, c.rz[pixels + at]) * of.eu);
        rdz -= tangent.along * c.dz[pixels + at];
      }
      c.out[pixels + at] = rdz;
      sum += rdz;
    });
    set.put(c.of_bias, plane, c.shape.loses_bias() ? 0 * sum : sum);  // no number stays none
  });
}

}  // namespace fastmeta::cuda
