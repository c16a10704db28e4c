// The passes over one task's layers: forward, the loss, backward, each alone or with tangents along the direction, and the
// gradients that come out of them. See mlp.cuh.
#pragma once
#include "mlp.cuh"

namespace fastmeta::cuda {

template <class R>
__device__ __forceinline__ void activate(Activation kind, R z, R& a, R& slope, R& curve) {
  a = z;
  slope = 1;
  curve = 0;
  if (kind == Activation::relu) {
    a = z < 0 ? R(0) : z;  // NaN stays NaN
    slope = z > 0 ? R(1) : R(0);
  } else if (kind == Activation::tanh) {
    a = std::tanh(z);
    slope = 1 - a * a;
    curve = -2 * a * slope;
  } else if (kind == Activation::sigmoid) {
    a = 1 / (1 + std::exp(-z));
    slope = a * (1 - a);
    curve = slope * (1 - 2 * a);
  } else if (kind == Activation::gelu) {
    const R below = R(0.5) * (1 + std::erf(z * R(0.70710678118654752440)));
    const R density = std::exp(R(-0.5) * z * z) * R(0.39894228040143267794);
    a = z * below;
    slope = below + z * density;
    curve = density * (2 - z * z);
  }
}

// Where a product goes: out[e] = (add ? out[e] : 0) + scale * factor[e or 0] * value; without `out`, into a sum.
template <class R>
struct Sink {
  R* out;
  R scale = 1;
  bool add = false;
  const R* factor = nullptr;
  bool per_element = false;

  __device__ __forceinline__ void operator()(int e, R value, R& sum) const {
    const R change = scale * (factor ? factor[per_element ? e : 0] : R(1)) * value;
    if (out) out[e] = add ? out[e] + change : change;
    else sum += change;
  }
};

// C [M, N] into the sink; the thread's part of the sum where that is one.
template <class R, Terms kTerms>
__device__ __noinline__ R product(int M, int N, int K, Factors<R> f, Sink<R> sink) {
  R sum = 0;
  multiply<R, kTerms, false>(M, N, K, f, [&](int i, int j, R value, R tangent) {
    sink(i * N + j, kTerms == Terms::value ? value : tangent, sum);
  });
  return sum;
}

// The sums of the columns of d [n, out] into the sink, by the threads that have least to do beside it.
template <class R>
__device__ __noinline__ R column_sums(const R* d, int n, int out, Sink<R> sink) {
  R sum = 0;
  for (int j = blockDim.x - 1 - threadIdx.x; j < out; j += blockDim.x) {
    R total = 0;
#pragma unroll 8
    for (int i = 0; i < n; i++) total += d[i * out + j];
    sink(j, total, sum);
  }
  return sum;
}

// x -> a, slope of every layer; kTangent: and ra, bend, the changes along the direction. The inputs do not change.
template <class R, bool kTangent>
__device__ __noinline__ void forward(const Task<R>& s) {
  for (int l = 0; l < s.layers; l++) {
    const Layer<R>& y = s.layer[l];
    const bool hidden = l + 1 < s.layers;
    const R *b = y.b, *vb = y.vb;
    R *a = y.a, *slope = y.slope, *ra = y.ra, *bend = y.bend;
    const int out = y.out;
    const Activation kind = s.activation;
    const auto store = [=](int i, int j, R z, R rz) {
      const int e = i * out + j;
      R value, gradient, curve;
      activate(hidden ? kind : Activation::identity, b ? z + b[j] : z, value, gradient, curve);
      a[e] = value;
      if (slope) slope[e] = gradient;
      if constexpr (kTangent) {
        if (l == 0) rz = ra[e];
        rz = vb ? rz + vb[j] : rz;
        ra[e] = gradient * rz;
        if (bend) bend[e] = curve * rz;
      }
    };
    const Factors<R> f{y.x, y.w, y.rx, y.vw, y.in, 1, 1, y.in};
    if constexpr (kTangent) {
      if (l) {
        multiply<R, Terms::both, true>(s.n, out, y.in, f, store);
        __syncthreads();
        continue;
      }
      multiply<R, Terms::value, true>(s.n, out, y.in, {y.x, y.vw, nullptr, nullptr, y.in, 1, 1, y.in},
                                      [=](int i, int j, R rz, R) { ra[i * out + j] = rz; });
      __syncthreads();
    }
    multiply<R, Terms::value, true>(s.n, out, y.in, f, store);
    __syncthreads();
  }
}

// dL/dz of the last layer (where there is room for it), and its tangent, plus dloss * dL/dz -> the loss, on every thread.
template <class R>
__device__ R squared_error(Task<R>& s, bool tangent, R dloss) {
  const Layer<R>& y = s.last();
  const R* target = static_cast<const R*>(s.y);
  const int count = s.n * y.out;
  const R scale = R(2) / R(count ? count : 1);
  R total = 0;
  for (int e = threadIdx.x; e < count; e += blockDim.x) {
    const R difference = y.a[e] - target[e], d = scale * difference;
    total += difference * difference;
    if (y.d) y.d[e] = d;
    if (tangent) y.rd[e] = scale * y.ra[e] + dloss * d;
  }
  return block_sum(s, total) / R(count ? count : 1);
}

// The same; a warp for each example.
template <class R>
__device__ R cross_entropy(Task<R>& s, bool tangent, R dloss) {
  const Layer<R>& y = s.last();
  const int64_t* targets = static_cast<const int64_t*>(s.y);
  const int classes = y.out, lane = threadIdx.x % kWarp;
  int counted = 0;
  for (int i = lane; i < s.n; i += kWarp) counted += targets[i] != kIgnoreIndex;
  counted = warp_sum(counted);
  counted = counted ? counted : 1;
  R total = 0;
  for (int i = threadIdx.x / kWarp; i < s.n; i += blockDim.x / kWarp) {
    const int64_t target = targets[i];
    const bool counts = target != kIgnoreIndex, valid = target >= 0 && target < classes;
    const R factor = valid ? 1 / R(counted) : counts ? R(NAN) : R(0);
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
      d[c] = counts ? factor * (p - (c == target ? R(1) : R(0))) : R(0);
      if (tangent) rd[c] = counts ? factor * p * (rz[c] - mean) + dloss * d[c] : R(0);
    }
    if (lane == 0 && counts) total += valid ? largest - z[target] + std::log(sum) : R(NAN);
  }
  return block_sum(s, total) / R(counted);
}

template <class R>
__device__ __noinline__ R output_gradient(Task<R>& s, bool tangent = false, R dloss = 0) {
  return s.loss == Loss::mse ? squared_error(s, tangent, dloss) : cross_entropy(s, tangent, dloss);
}

// d of the last layer -> d of all; kTangent: and rd.
template <class R, bool kTangent>
__device__ __noinline__ void backward(const Task<R>& s) {
  for (int l = s.layers - 1; l > 0; l--) {
    const Layer<R>&y = s.layer[l], &below = s.layer[l - 1];
    const R *slope = below.slope, *bend = below.bend;
    R *d = below.d, *rd = below.rd;
    const int in = y.in;
    const Factors<R> f{y.d, y.w, y.rd, y.vw, y.out, 1, in, 1};
    multiply<R, kTangent ? Terms::both : Terms::value, false>(s.n, in, y.out, f, [=](int i, int j, R da, R rda) {
      const int e = i * in + j;
      d[e] = da * slope[e];
      if constexpr (kTangent) rd[e] = bend ? rda * slope[e] + da * bend[e] : rda * slope[e];
    });
    __syncthreads();
  }
}

// One parameter tensor's gradient, or its tangent H v (from rd), into the sink; the thread's part of a sum. No barrier.
template <class R, bool kTangent>
__device__ __forceinline__ R tensor_gradient(const Task<R>& s, int tensor, Sink<R> sink) {
  const Layer<R>& y = s.layer[tensor / 2];
  const R* d = kTangent ? y.rd : y.d;
  if (tensor % 2) return column_sums(d, s.n, y.out, sink);
  if constexpr (kTangent)
    if (y.rx) return product<R, Terms::tangent>(y.out, y.in, s.n, {y.d, y.x, y.rd, y.rx, 1, y.out, y.in, 1}, sink);
  return product<R, Terms::value>(y.out, y.in, s.n, {d, y.x, nullptr, nullptr, 1, y.out, y.in, 1}, sink);
}

// dL/dx of the task, or its tangent, into the sink. No barrier.
template <class R, bool kTangent>
__device__ __forceinline__ void input_gradient(const Task<R>& s, Sink<R> sink) {
  const Layer<R>& y = s.layer[0];
  product<R, kTangent ? Terms::tangent : Terms::value>(s.n, y.in, y.out, {y.d, y.w, y.rd, y.vw, y.out, 1, y.in, 1}, sink);
}

// dL/dtargets = -dL/dz of the last layer, or its tangent. No barrier.
template <class R>
__device__ void target_gradient(Task<R>& s, const R* d, Sink<R> sink) {
  R sum = 0;
  for (int e = threadIdx.x; e < s.n * s.last().out; e += blockDim.x) sink(e, -d[e], sum);
}

// The gradients of the task's loss that are asked for. No barrier.
template <class R>
__device__ void store_gradients(Task<R>& s, const MlpParams<R>& dparams, int64_t task) {
  for_each_tensor(s, [&](int tensor, int, int) {
    if (R* out = tensor_of(dparams, tensor, task)) tensor_gradient<R, false>(s, tensor, {out});
  });
}
template <class R>
__device__ void store_gradients(Task<R>& s, const MlpExampleGrads<R>& grads, int64_t task) {
  if (grads.dx) input_gradient<R, false>(s, {grads.dx + task * s.n * s.layer[0].in});
  if (grads.dy) target_gradient(s, s.last().d, {grads.dy + task * s.n * s.last().out});
}

}  // namespace fastmeta::cuda
