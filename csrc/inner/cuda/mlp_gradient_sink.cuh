// Where gradients go, and with which rates.
#pragma once
#include "inner/mlp.h"
#include "runtime/cuda/launch.h"

namespace fastmeta::cuda {

// out[e] = (base ? base[e] : 0) + scale * factor[e or 0] * value; with `sums`, into the thread's sum. Null `out`: not asked for.
template <class R>
struct Sink {
  R* out = nullptr;
  R scale = 1;
  const R* base = nullptr;
  const R* factor = nullptr;
  bool per_element = false, sums = false;

  __device__ __forceinline__ void operator()(int e, R value, R& sum) const {
    const R change = scale * (factor ? factor[per_element ? e : 0] : R(1)) * value;
    if (sums) sum += change;
    else out[e] = base ? base[e] + change : change;
  }
};

// A tensor of every task; stride 0: one for all.
template <class P>
struct TaskTensor {
  P* data = nullptr;
  int64_t stride = 0;

  __device__ P* of(int64_t task) const { return data ? data + task * stride : nullptr; }
};

// The sinks of all tasks.
template <class R>
struct Sinks {
  TaskTensor<R> out;
  R scale = 1;
  TaskTensor<const R> base, factor;
  bool per_element = false, sums = false;

  __host__ __device__ bool asked() const { return out.data || sums; }
  __device__ Sink<R> of(int64_t task) const { return {out.of(task), scale, base.of(task), factor.of(task), per_element, sums}; }
};

// The rates of one parameter tensor at one step; null where there are none, and for a number. `copy`: which one, a task for gradients.
template <class P, int tensors>
__host__ __device__ P* rates_of(const Rates<P, tensors>& rates, int tensor, int size, int64_t step, int64_t steps, int64_t copy) {
  P* value = rates.value[rates.shared ? 0 : tensor];
  if (!value) return nullptr;
  return value + (copy * (rates.per_step ? steps : 1) + (rates.per_step ? step : 0)) * (rates.per_element ? size : 1);
}

// The factor of one parameter tensor's steps beside `rates_of`: its rate where that is a number, else 1.
template <class R, int tensors>
__host__ __device__ R number_of(const Rates<const R, tensors>& rates, int tensor) {
  const int i = rates.shared ? 0 : tensor;
  return rates.value[i] ? R(1) : rates.number[i];
}

}  // namespace fastmeta::cuda
