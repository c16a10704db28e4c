// What a norm and ReLU make of the numbers of one channel: see conv_norm.cuh.
#pragma once
#include "runtime/cuda/launch.h"

namespace fastmeta::cuda {

// What orders z in a window as their y are: s is above 0.
template <class R>
__device__ __forceinline__ R rank_of(R gamma, R z) {
  return gamma > 0 ? z : gamma < 0 ? -z : gamma * z;
}

// Whether number `from` of a window wins over number `at`: the first of the largest, or the last that is none.
template <class R>
__device__ __forceinline__ bool beats(R other, int from, R best, int at) {
  if (other != other) return best == best || from > at;
  return best == best && (other > best || (other == best && from < at));
}

template <class R>
struct Channel {
  R mean, s, gamma, beta;

  __device__ __forceinline__ R u(R z) const { return (z - mean) * s; }
  __device__ __forceinline__ R y(R z) const { return std::fma(z - mean, s * gamma, beta); }
  __device__ __forceinline__ bool open(bool relu, R z) const { return !relu || !(y(z) <= 0); }
};

// ru of a pixel.
template <class R>
struct NormTangent {
  R mean, along;

  __device__ __forceinline__ R ru(const Channel<R>& channel, R z, R rz) const {
    return channel.s * (rz - mean) - (along == 0 ? R(0) : channel.u(z) * along);
  }
};

}  // namespace fastmeta::cuda
