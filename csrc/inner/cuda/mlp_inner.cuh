// The inner loop of one task and the chain of Hessian-vector products that runs back through it, as stages of one form:
// forward, loss, backward, gradients. A gradient is never stored: its products go straight into the parameters, the
// cotangent or the gradients of the rates.
#pragma once
#include "inner/cuda/mlp_passes.cuh"

namespace fastmeta::cuda {

enum class Stage : int { descend, query, chain };

// What the stages of a task share, and where the gradients of each go.
template <class R>
struct Inner {
  Task<R>& s;
  const MlpRates<const R>& rates;
  const MlpRates<R>& drates;              // [T, ...]; null: not asked for
  const ExampleGrads<R>&support, &query;  // of all tasks
  int64_t steps, task;
  bool first_order;

  Stage stage = Stage::descend;
  int64_t step = 0;
  R shared_sum = 0;  // this thread's part of a gradient of the one rate

  __device__ __forceinline__ Sink<R> sink(int tensor, int offset, int size, bool tangent) const {
    const int inputs = 2 * s.layers;
    const bool chain = stage == Stage::chain, parameter = tensor < inputs;
    if (stage == Stage::descend && !parameter) return {};
    if (stage == Stage::descend)  // theta -= alpha g
      return {s.theta + offset, -number_of(rates, tensor), s.theta + offset, rates_of(rates, tensor, size, step, steps, 0),
              rates.per_element};
    if (chain && !tangent) {  // dalpha -= v g
      R* dalpha = parameter ? rates_of(drates, tensor, size, step, steps, task) : nullptr;
      if (!dalpha) return {};
      return {drates.per_element ? dalpha : nullptr, R(-1), dalpha, s.cotangent + offset, true, !drates.per_element};
    }
    R* out = s.cotangent + offset;  // v = g of the query, v -= H (alpha v); alike the examples
    if (!parameter) {
      const ExampleGrads<R> grads = examples_of(s, chain ? support : query, s.n, task);
      out = tensor == inputs ? grads.dx : grads.dy;
    }
    return {out, chain ? R(-1) : R(1), chain ? out : nullptr};
  }

  __device__ __forceinline__ void done(int tensor, int size, R sum) {
    if (drates.shared) shared_sum += sum;
    else add(rates_of(drates, tensor, size, step, steps, task), sum);
  }

  __device__ __forceinline__ void add(R* dalpha, R sum) {
    const R total = block_sum(s.partial, sum);
    if (threadIdx.x == 0) *dalpha += total;
  }
};

template <class R>
__device__ void zero(R* to, int64_t count) {
  for (int64_t e = threadIdx.x; to && e < count; e += blockDim.x) to[e] = 0;
}

// Zeroes what the chain adds to; returns whether the chain has anything to do. A barrier must follow.
template <class R>
__device__ bool begin_chain(const Inner<R>& inner, int64_t n) {
  const Task<R>& s = inner.s;
  const MlpRates<R>& drates = inner.drates;
  bool asked = !inner.first_order;
  for_each_tensor(s, [&](int tensor, int, int size) {
    if (drates.shared && tensor) return;
    R* dalpha = rates_of(drates, tensor, size, 0, inner.steps, inner.task);
    zero(dalpha, (drates.per_step ? inner.steps : 1) * (drates.per_element ? int64_t(size) : 1));
    asked = asked || dalpha;
  });
  const ExampleGrads<R> support = examples_of(s, inner.support, n, inner.task);
  zero(support.dx, n * s.layer[0].in);
  zero(support.dy, n * s.layer[s.layers - 1].out);
  zero(support.dweights, n);
  return asked;
}

// The parameters of a step, and the direction alpha v. Between two barriers.
template <class R>
__device__ void load_step(const Inner<R>& inner, const R* trajectory) {
  const Task<R>& s = inner.s;
  copy(s.theta, trajectory + inner.step * s.params, s.params);
  if (inner.first_order) return;
  for_each_tensor(s, [&](int tensor, int offset, int size) {
    const R* alpha = rates_of(inner.rates, tensor, size, inner.step, inner.steps, 0);
    const R number = number_of(inner.rates, tensor);
    for (int e = threadIdx.x; e < size; e += blockDim.x)
      s.direction[offset + e] = (alpha ? alpha[inner.rates.per_element ? e : 0] : number) * s.cotangent[offset + e];
  });
}

// One step of inner SGD; or the query's loss and its gradients; or one link of the chain: v -= H (alpha v). Returns the
// loss. Ends with a barrier.
template <class R, bool kCurvature>
__device__ __forceinline__ R run_stage(Inner<R>& inner, bool with_gradients = true) {
  Task<R>& s = inner.s;
  const bool tangent = kCurvature && inner.stage == Stage::chain && !inner.first_order;
  forward<R, kCurvature>(s, tangent);
  const R loss = output_gradient(s, tangent);
  if (!with_gradients) return loss;
  backward<R, kCurvature>(s, tangent);
  for (int pass = 0; pass < (tangent ? 2 : 1); pass++) {
    inner.shared_sum = 0;
    gradients<R, kCurvature>(s, pass, inner);
    if (inner.stage == Stage::chain && pass == 0 && inner.drates.shared && inner.drates.value[0])
      inner.add(rates_of(inner.drates, 0, 1, inner.step, inner.steps, inner.task), inner.shared_sum);
    __syncthreads();
  }
  return loss;
}

}  // namespace fastmeta::cuda
