// The passes over one task's layers: forward, the loss, backward, each alone or with tangents along the direction, and the
// gradients that come out of them. See mlp.cuh. Every pass is inlined, and a kernel has each in one place only: a called
// function would spend a quarter of a product's instructions on the memory descriptor.
#pragma once
#include "mlp.cuh"

namespace fastmeta::cuda {

// activation(z), its first and its second derivative.
template <class R>
__device__ __forceinline__ R activation(Activation kind, R z, R& slope, R& curve) {
  slope = 1;
  curve = 0;
  if (kind == Activation::relu) {
    slope = z > 0 ? R(1) : R(0);
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
  return z;
}

// z [n, out] = x w' + b, in a; kTangent: and rz = rx w' + x vw' + vb, in ra. `of_direction`: with vw, vb alone, in ra. No barrier.
template <class R, bool kTangent>
__device__ __forceinline__ void linear(const Layer<R>& y, int n, bool of_direction = false) {
  multiply<R, kTangent ? Terms::both : Terms::value, true>(
      n, y.out, y.in, {y.x, of_direction ? y.vw : y.w, y.rx, y.vw, y.in, 1, 1, y.in}, [&] {
        R *z = of_direction ? y.ra : y.a, *rz = y.ra;
        const R *b = of_direction ? y.vb : y.b, *vb = y.vb;
        const int out = y.out;
        return [=](int i, int j, R value, R tangent) {
          z[i * out + j] = b ? value + b[j] : value;
          if constexpr (kTangent) rz[i * out + j] = vb ? tangent + vb[j] : tangent;
        };
      });
}

// z (in a) -> a, slope; with `tangent` its tangent (in ra) -> ra, bend. In place, a thread its own elements; no barrier.
template <class R, bool kCurvature>
__device__ __forceinline__ void activate(const Layer<R>& y, Activation kind, int n, bool tangent) {
  for (int e = threadIdx.x; e < n * y.out; e += blockDim.x) {
    R gradient, curve;
    y.a[e] = activation(kind, y.a[e], gradient, curve);
    if (y.slope) y.slope[e] = gradient;
    if (!kCurvature || !tangent) continue;
    const R rz = y.ra[e];
    y.ra[e] = gradient * rz;
    if (y.bend) y.bend[e] = curve * rz;
  }
}

// x -> a, slope of every layer; with `tangent` ra, bend too, the changes along the direction; the inputs do not change.
template <class R, bool kCurvature>
__device__ __forceinline__ void forward(const Task<R>& s, bool tangent = false) {
  for (int l = 0; l < s.layers; l++) {
    const Layer<R>& y = s.layer[l];
    if (kCurvature && tangent && l) linear<R, true>(y, s.n);
    else
      for (int of = 0; of < (kCurvature && tangent ? 2 : 1); of++) linear<R, false>(y, s.n, of);
    __syncthreads();
    if (l + 1 == s.layers) break;
    activate<R, kCurvature>(y, s.activation, s.n, tangent);
    __syncthreads();
  }
}

// dL/dz of the last layer (where there is room for it), and its tangent, plus dloss * dL/dz -> the loss, on every thread.
template <class R>
__device__ __forceinline__ R squared_error(Task<R>& s, bool tangent, R dloss) {
  const Layer<R>& y = s.last();
  const R* target = static_cast<const R*>(s.y);
  const int count = s.n * y.out;
  const R scale = R(2) / R(count ? count : 1);
  R total = 0;
  for (int e = threadIdx.x; e < count; e += blockDim.x) {
    const R difference = y.a[e] - target[e], d = scale * difference;
    total += difference * difference;
    if (y.d) y.d[e] = d;
    if (tangent) y.rd[e] = scale * y.ra[e] + (dloss == 0 ? R(0) : dloss * d);
  }
  return block_sum(s, total) / R(count ? count : 1);
}

// The same; a warp for each example.
template <class R>
__device__ __forceinline__ R cross_entropy(Task<R>& s, bool tangent, R dloss) {
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
__device__ __forceinline__ R output_gradient(Task<R>& s, bool tangent = false, R dloss = 0) {
  return s.loss == Loss::mse ? squared_error(s, tangent, dloss) : cross_entropy(s, tangent, dloss);
}

// d of the last layer -> d of all; with `tangent` rd too.
template <class R, bool kCurvature>
__device__ __forceinline__ void backward(const Task<R>& s, bool tangent = false) {
  for (int l = s.layers - 1; l > 0; l--) {
    const Layer<R>&y = s.layer[l], &below = s.layer[l - 1];
    const Factors<R> f{y.d, y.w, y.rd, y.vw, y.out, 1, y.in, 1};
    if (kCurvature && tangent)
      multiply<R, Terms::both, false>(s.n, y.in, y.out, f, [&] {
        const R *slope = below.slope, *bend = below.bend;
        R *d = below.d, *rd = below.rd;
        const int in = y.in;
        return [=](int i, int j, R da, R rda) {
          const int e = i * in + j;
          d[e] = da * slope[e];
          rd[e] = bend ? rda * slope[e] + da * bend[e] : rda * slope[e];
        };
      });
    else
      multiply<R, Terms::value, false>(s.n, y.in, y.out, f, [&] {
        const R* slope = below.slope;
        R* d = below.d;
        const int in = y.in;
        return [=](int i, int j, R da, R) { d[i * in + j] = da * slope[i * in + j]; };
      });
    __syncthreads();
  }
}

// Where a gradient goes: out[e] = (add ? out[e] : 0) + scale * factor[e or 0] * value; with `sums`, into the thread's sum.
template <class R>
struct Sink {
  R* out = nullptr;
  R scale = 1;
  bool add = false;
  const R* factor = nullptr;
  bool per_element = false, sums = false;

  __device__ __forceinline__ void operator()(int e, R value, R& sum) const {
    const R change = scale * (factor ? factor[per_element ? e : 0] : R(1)) * value;
    if (sums) sum += change;
    else out[e] = add ? out[e] + change : change;
  }
};

template <class R, Terms kTerms>
__device__ __forceinline__ void product(int M, int N, int K, const Factors<R>& f, const Sink<R>& sink, R& sum) {
  multiply<R, kTerms, false>(M, N, K, f, [&] {
    return [&](int i, int j, R value, R tangent) { sink(i * N + j, kTerms == Terms::value ? value : tangent, sum); };
  });
}

// The sums of the columns of d [n, out], by the threads that have least to do beside it.
template <class R>
__device__ __forceinline__ void column_sums(const R* d, int n, int out, const Sink<R>& sink, R& sum) {
  for (int j = blockDim.x - 1 - threadIdx.x; j < out; j += blockDim.x) {
    R total = 0;
    for (int begin = 0; begin < n; begin += kShortSum) {
      R part = 0;
#pragma unroll 8
      for (int i = begin; i < least(begin + kShortSum, n); i++) part += d[i * out + j];
      total += part;
    }
    sink(j, total, sum);
  }
}

// The gradients of the task's loss, or with `tangent` their tangents (from rd): of every parameter tensor, then of the inputs
// (tensor 2 L), then of the targets (2 L + 1: dL/dy = -dL/dz). to.sink(tensor, offset, size, tangent) says where; to.done(tensor,
// size, sum) gets the thread's sum where that is asked for. No barrier.
template <class R, bool kCurvature, class To>
__device__ __forceinline__ void gradients(const Task<R>& s, bool tangent, To&& to) {
  const int inputs = 2 * s.layers;
  int offset = 0;
  for (int tensor = 0; tensor <= inputs + 1; tensor++) {
    const Layer<R>& y = s.layer[tensor < inputs ? tensor / 2 : tensor == inputs ? 0 : s.layers - 1];
    const bool bias = tensor % 2 && tensor < inputs;
    if (bias && !y.has_bias) continue;
    const int rows = tensor < inputs ? y.out : s.n, columns = tensor == inputs + 1 ? y.out : y.in;
    const int size = bias ? rows : rows * columns;
    const R* d = kCurvature && tangent ? y.rd : y.d;
    const Sink<R> sink = to.sink(tensor, offset, size, tangent);
    offset += size;
    if (!sink.out && !sink.sums) continue;
    R sum = 0;
    if (bias) {
      column_sums(d, s.n, size, sink, sum);
    } else if (tensor > inputs) {
      for (int e = threadIdx.x; e < size; e += blockDim.x) sink(e, -d[e], sum);
    } else {
      const bool weight = tensor < inputs, both = kCurvature && tangent && !(weight && !y.rx);
      const Factors<R> f = weight ? Factors<R>{both ? y.d : d, y.x, y.rd, y.rx, 1, y.out, y.in, 1}
                                  : Factors<R>{y.d, y.w, y.rd, y.vw, y.out, 1, y.in, 1};
      const int inner = weight ? s.n : y.out;
      if (both) product<R, Terms::tangent>(rows, columns, inner, f, sink, sum);
      else product<R, Terms::value>(rows, columns, inner, f, sink, sum);
    }
    if (sink.sums) to.done(tensor, size, sum);
  }
}

// The gradients that a caller asks for, of one task.
template <class R>
struct Asked {
  const MlpParams<R>& dparams;  // [T, ...]
  int64_t task;
  int inputs;                   // 2 L
  MlpExampleGrads<R> grads;     // of this task

  __device__ __forceinline__ Sink<R> sink(int tensor, int, int, bool) const {
    if (tensor < inputs) return {tensor_of(dparams, tensor, task)};
    return {tensor == inputs ? grads.dx : grads.dy};
  }
  __device__ void done(int, int, R) const {}
};

// Where the gradients to the examples of a task go.
template <class R>
__device__ MlpExampleGrads<R> examples_of(const Task<R>& s, const MlpExampleGrads<R>& grads, int64_t n, int64_t task) {
  return {grads.dx ? grads.dx + task * n * s.layer[0].in : nullptr,
          grads.dy ? grads.dy + task * n * s.layer[s.layers - 1].out : nullptr};
}

}  // namespace fastmeta::cuda
