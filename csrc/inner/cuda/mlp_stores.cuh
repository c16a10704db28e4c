// What becomes of the sums of a product in tiles: store.of(task, size of C)(element, column, sum, thread's sum), once for each.
#pragma once
#include "inner/cuda/mlp_output.cuh"
#include "inner/cuda/mlp_gradient_sink.cuh"

namespace fastmeta::cuda {

// z -> a = activation(z + bias); slope, curve where asked for. Arrays of all tasks, as those of the other stores.
template <class R>
struct Activated {
  TaskTensor<const R> bias;
  R *a, *slope, *curve;
  Activation kind;

  __device__ auto of(int64_t task, int64_t size) const {
    return [=, first = task * size, b = bias.of(task)](int e, int j, R z, R&) {
      R gradient, second;
      a[first + e] = activation(kind, b ? z + b[j] : z, gradient, second);
      if (slope) slope[first + e] = gradient;
      if (curve) curve[first + e] = second;
    };
  }
};

// rz -> ra = slope (rz + bias); bend = curve (rz + bias), in the place of curve.
template <class R>
struct ActivatedTangent {
  TaskTensor<const R> bias;
  const R* slope;  // null in the last layer
  R *ra, *bend;
  Activation kind;

  __device__ auto of(int64_t task, int64_t size) const {
    return [=, first = task * size, b = bias.of(task)](int e, int j, R rz, R&) {
      if (b) rz += b[j];
      ra[first + e] = slope ? gated(kind, slope[first + e], rz) : rz;
      if (bend) bend[first + e] *= rz;
    };
  }
};

// da -> d = slope da, and what of its tangent comes from da: bend da.
template <class R>
struct Gated {
  const R *slope, *bend;  // bend: null where there is none, or no tangent
  R *d, *rd;
  Activation kind;

  __device__ auto of(int64_t task, int64_t size) const {
    return [=, first = task * size](int e, int, R da, R&) {
      d[first + e] = gated(kind, slope[first + e], da);
      if (bend) rd[first + e] = bend[first + e] * da;
    };
  }
};

// rda -> the rest of that tangent.
template <class R>
struct GatedTangent {
  const R *slope, *bend;
  R* rd;
  Activation kind;

  __device__ auto of(int64_t task, int64_t size) const {
    return [=, first = task * size](int e, int, R rda, R&) {
      rd[first + e] = gated(kind, slope[first + e], rda) + (bend ? rd[first + e] : R(0));
    };
  }
};

// A gradient goes where a sink takes it; one that is not asked for into the thread's sum.
template <class R>
struct IntoSink {
  Sinks<R> target;

  __device__ auto of(int64_t task, int64_t) const {
    Sink<R> sink = target.of(task);
    sink.sums = !sink.out;
    return [=](int e, int, R value, R& sum) { sink(e, value, sum); };
  }
};

}  // namespace fastmeta::cuda
