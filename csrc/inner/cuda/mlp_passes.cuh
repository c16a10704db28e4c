// The passes over one task's layers: forward and backward, each alone or with tangents along the direction, and the
// gradients that come out of them. See mlp.cuh. Every pass is inlined, and a kernel has each in one place only: a called
// function would spend a quarter of a product's instructions on the memory descriptor.
#pragma once
#include "inner/cuda/mlp_output.cuh"
#include "inner/cuda/mlp_gradient_sink.cuh"

namespace fastmeta::cuda {

// z [n, out] = x w' + b, in a; kTangent: and rz = rx w' + x vw' + vb, in ra. `of_direction`: with vw, vb alone, in ra. No barrier.
template <class R, bool kTangent>
__device__ __forceinline__ void linear(const Layer<R>& y, int n, bool of_direction = false) {
  multiply<R, kTangent ? Terms::both : Terms::value, true>(n, y.out, y.in, {y.x, of_direction ? y.vw : y.w, y.rx, y.vw, y.in, 1, 1, y.in},
                                                           [&] {
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
    y.ra[e] = gated(kind, gradient, rz);
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
        const Activation kind = s.activation;
        return [=](int i, int j, R da, R rda) {
          const int e = i * in + j;
          d[e] = gated(kind, slope[e], da);
          rd[e] = bend ? slope[e] * rda + da * bend[e] : gated(kind, slope[e], rda);
        };
      });
    else
      multiply<R, Terms::value, false>(s.n, y.in, y.out, f, [&] {
        const R* slope = below.slope;
        R* d = below.d;
        const int in = y.in;
        const Activation kind = s.activation;
        return [=](int i, int j, R da, R) { d[i * in + j] = gated(kind, slope[i * in + j], da); };
      });
    __syncthreads();
  }
}

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
      const Factors<R> f =
          weight ? Factors<R>{both ? y.d : d, y.x, y.rd, y.rx, 1, y.out, y.in, 1} : Factors<R>{y.d, y.w, y.rd, y.vw, y.out, 1, y.in, 1};
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
  const MlpParams<R>& dparams;   // [T, ...]
  const ExampleGrads<R>& grads;  // of all tasks
  int64_t task;
  int inputs;  // 2 L

  __device__ __forceinline__ Sink<R> sink(int tensor, int, int size, bool) const {
    if (tensor < inputs) return {tensor_of(dparams, tensor, task)};
    R* out = tensor == inputs ? grads.dx : grads.dy;
    return {out ? out + task * size : nullptr};
  }
  __device__ void done(int, int, R) const {}
};

// Where the gradients to the examples of a task go.
template <class R>
__device__ ExampleGrads<R> examples_of(const Task<R>& s, const ExampleGrads<R>& grads, int64_t n, int64_t task) {
  return {grads.dx ? grads.dx + task * n * s.layer[0].in : nullptr, grads.dy ? grads.dy + task * n * s.layer[s.layers - 1].out : nullptr,
          grads.dweights ? grads.dweights + task * n : nullptr};
}

}  // namespace fastmeta::cuda
