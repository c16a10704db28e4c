// What a norm and ReLU make of the numbers of one channel: see conv_norm.cuh.
#pragma once
#include "runtime/cuda/launch.h"

namespace fastmeta::cuda {

template <class R>
struct Channel {
  R mean, s, gamma, beta;

  __device__ __forceinline__ R u(R z) const { return (z - mean) * s; }
  __device__ __forceinline__ R y(R z) const { return std::fma(z - mean, s * gamma, beta); }
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
