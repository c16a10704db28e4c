// The activations, and the losses with their gradients in the outputs, of one task by one block. See mlp.cuh.
#pragma once
#include "inner/cuda/mlp.cuh"

namespace fastmeta::cuda {

// (z - pi n) / pi for the nearest n; sign: of (-1)^n. sinpi and cospi of it touch no local memory, as sin and cos do. NaN beyond 1e15.
__device__ __forceinline__ double half_turns(double z, double& sign) {
  const double n = std::rint(z * 0.31830988618379067154);
  const double rest = std::fma(-n, 1.2246467991473531772e-16, std::fma(-n, 3.14159265358979311600, z));
  sign = 1 - 2 * std::fabs(n - 2 * std::rint(n / 2));
  return std::fabs(z) <= 1e15 ? rest * 0.31830988618379067154 : NAN;
}

__device__ __forceinline__ float half_turns(float z, float& sign) {
  if (!(std::fabs(z) <= 1e5f)) {
    double of_double;
    const double t = half_turns(double(z), of_double);
    sign = float(of_double);
    return float(t);
  }
  const float n = std::rint(z * 0.318309886f);
  sign = 1 - 2 * std::fabs(n - 2 * std::rint(n / 2));
  return std::fma(-n, -8.74227801e-8f, std::fma(-n, 3.14159274f, z)) * 0.318309886f;
}

// activation(z), its first and its second derivative.
template <class R>
__device__ __forceinline__ R activation(Activation kind, R z, R& slope, R& curve) {
  slope = 1;
  curve = 0;
  if (kind == Activation::relu) {
    slope = z <= 0 ? R(0) : R(1);
    return z < 0 ? R(0) : z;  // NaN stays NaN
  }
  if (kind == Activation::tanh) {
    const R a = std::tanh(z);
    slope = 1 - a * a;
    curve = -2 * a * slope;
    return a;
  }
  if (kind == Activation::sigmoid) {
    const R a = 1 / (1 + std::exp(-z));
    slope = a * (1 - a);
    curve = slope * (1 - 2 * a);
    return a;
  }
  if (kind == Activation::gelu) {
    const R below = R(0.5) * (1 + std::erf(z * R(0.70710678118654752440)));
    const R density = std::exp(R(-0.5) * z * z) * R(0.39894228040143267794);
    slope = below + z * density;
    curve = density * (2 - z * z);
    return z * below;
  }
  if (kind == Activation::silu) {
    const R s = 1 / (1 + std::exp(-z));
    slope = s * (1 + z * (1 - s));
    curve = s * (1 - s) * (2 + z * (1 - 2 * s));
    return z * s;
  }
  if (kind == Activation::leaky_relu) {
    slope = z > 0 ? R(1) : R(kLeak);
    return z * slope;
  }
  if (kind == Activation::sine) {
    R sign;
    const R t = half_turns(z, sign);
    if constexpr (sizeof(R) == sizeof(float)) slope = sign * cospif(t), curve = -sign * sinpif(t);
    else slope = sign * cospi(t), curve = -sign * sinpi(t);
    return -curve;
  }
  return z;
}

// activation'(z) times a gradient or a tangent: through a ReLU that is shut nothing comes, not even NaN or infinity.
template <class R>
__device__ __forceinline__ R gated(Activation kind, R slope, R value) {
  return kind == Activation::relu && slope == 0 ? R(0) : slope * value;
}

template <class R>
__device__ __forceinline__ void put_weight_gradient(const Task<R>& s, int i, R gradient) {
  s.dweights[i] = s.subtracts ? s.dweights[i] - gradient : gradient;
}

// dL/dweights, or with `tangent` its tangent, plus dloss times itself. A thread for each example.
template <class R>
__device__ __forceinline__ void squared_error_of_weights(Task<R>& s, bool tangent, R dloss, R scale, int begin, int end) {
  const Layer<R>& y = s.last();
  const R* target = static_cast<const R*>(s.y);
  for (int i = begin + threadIdx.x; i < end; i += blockDim.x) {
    R loss = 0, change = 0;
    for (int e = i * y.out; e < (i + 1) * y.out; e++) {
      const R difference = y.a[e] - target[e];
      loss += difference * difference;
      if (tangent) change += difference * y.ra[e];
    }
    loss *= scale / 2;
    put_weight_gradient(s, i, tangent ? scale * change + (dloss == 0 ? R(0) : dloss * loss) : loss);
  }
}

// Of the examples begin .. end: dL/dz of the last layer (where there is room for it), and its tangent, plus dloss * dL/dz -> their part of
// the loss, on every thread.
template <class R>
__device__ __forceinline__ R squared_error(Task<R>& s, bool tangent, R dloss, int begin, int end) {
  const Layer<R>& y = s.last();
  const R* target = static_cast<const R*>(s.y);
  const int count = s.n * y.out;
  const R scale = R(2) / R(count ? count : 1);
  R total = 0;
  for (int e = begin * y.out + threadIdx.x; e < end * y.out; e += blockDim.x) {
    const R weight = s.weights ? s.weights[e / y.out] : R(1);
    const R difference = y.a[e] - target[e], d = scale * weight * difference;
    total += weight * difference * difference;
    if (y.d) y.d[e] = d;
    if (tangent) y.rd[e] = scale * weight * y.ra[e] + (dloss == 0 ? R(0) : dloss * d);
  }
  if (s.dweights) squared_error_of_weights(s, tangent, dloss, scale, begin, end);
  return block_sum(s.partial, total) / R(count ? count : 1);
}

// The same; a warp for each example.
template <class R>
__device__ __forceinline__ R cross_entropy(Task<R>& s, bool tangent, R dloss, int begin, int end) {
  const Layer<R>& y = s.last();
  const int64_t* targets = static_cast<const int64_t*>(s.y);
  const int classes = y.out, lane = threadIdx.x % kWarp;
  int counted = 0;
  for (int i = lane; i < s.n; i += kWarp) counted += targets[i] != kIgnoreIndex;
  counted = warp_sum(counted);
  counted = counted ? counted : 1;
  R total = 0;
  for (int i = begin + threadIdx.x / kWarp; i < end; i += blockDim.x / kWarp) {
    const int64_t target = targets[i];
    const bool counts = target != kIgnoreIndex, valid = target >= 0 && target < classes;
    const R share = valid ? 1 / R(counted) : counts ? R(NAN) : R(0);
    const R factor = s.weights && counts ? share * s.weights[i] : share;
    const R *z = y.a + i * classes, *rz = tangent ? y.ra + i * classes : nullptr;
    R *d = y.d ? y.d + i * classes : nullptr, *rd = tangent ? y.rd + i * classes : nullptr;
    R largest = z[0], sum = 0, mean = 0;
    for (int c = lane; c < classes; c += kWarp) largest = z[c] > largest ? z[c] : largest;
    largest = warp_max(largest);
    for (int c = lane; c < classes; c += kWarp) {
      const R p = std::exp(z[c] - largest);
      sum += p;
      if (d) d[c] = p;
      if (tangent) mean += p * rz[c];
    }
    sum = warp_sum(sum);
    mean = warp_sum(mean) / sum;
    for (int c = lane; d && c < classes; c += kWarp) {
      const R p = d[c] / sum;
      d[c] = factor * (p - (c == target ? R(1) : R(0)));  // 0 where ignored, but NaN stays
      if (tangent) rd[c] = factor * p * (rz[c] - mean) + dloss * d[c];
    }
    if (lane == 0 && counts) {
      const R loss = valid ? largest - z[target] + std::log(sum) : R(NAN);
      total += s.weights ? s.weights[i] * loss : loss;  // read again: registers are short
      const R change = tangent && valid ? mean - rz[target] + (dloss == 0 ? R(0) : dloss * loss) : loss;
      if (s.dweights) put_weight_gradient(s, i, change / R(counted));
    } else if (lane == 0 && s.dweights) {
      put_weight_gradient(s, i, R(0));
    }
  }
  return block_sum(s.partial, total) / R(counted);
}

template <class R>
__device__ __forceinline__ R output_gradient(Task<R>& s, bool tangent, R dloss, int begin, int end) {
  return s.loss == Loss::mse ? squared_error(s, tangent, dloss, begin, end) : cross_entropy(s, tangent, dloss, begin, end);
}
template <class R>
__device__ __forceinline__ R output_gradient(Task<R>& s, bool tangent = false, R dloss = 0) {
  return output_gradient(s, tangent, dloss, 0, s.n);
}

}  // namespace fastmeta::cuda
