// The inner loop of one task and the chain of Hessian-vector products that runs back through it. The gradient is never
// stored: its products go straight into the parameters, the cotangent or the rates' gradients.
#pragma once
#include "mlp_passes.cuh"

namespace fastmeta::cuda {

// The rates of one parameter tensor at one step; null where there are none. `copy`: which one, a task for gradients.
template <class P>
__device__ P* rates_of(const MlpRates<P>& rates, int tensor, int size, int64_t step, int64_t steps, int64_t copy) {
  P* value = rates.value[rates.shared ? 0 : tensor];
  if (!value) return nullptr;
  return value + (copy * (rates.per_step ? steps : 1) + (rates.per_step ? step : 0)) * (rates.per_element ? size : 1);
}

// `steps` steps of inner SGD from theta; the parameters before each go to trajectory [steps, P] if there is one.
template <class R>
__device__ void descend(Task<R>& s, const MlpRates<const R>& rates, int64_t steps, R* trajectory) {
  for (int64_t k = 0; k < steps; k++) {
    if (trajectory) copy(trajectory + k * s.params, s.theta, s.params);
    forward<R, false>(s);
    output_gradient(s);
    backward<R, false>(s);
    for_each_tensor(s, [&](int tensor, int offset, int size) {
      const R* alpha = rates_of(rates, tensor, size, k, steps, 0);
      tensor_gradient<R, false>(s, tensor, {s.theta + offset, R(-1), true, alpha, rates.per_element});
    });
    __syncthreads();
  }
}

template <class R>
struct Chain {
  const MlpRates<const R>& rates;
  const MlpRates<R>& drates;   // [T, ...]: this task's are written
  MlpExampleGrads<R> grads;    // of this task's support
  const R* trajectory;         // [steps, P]
  int64_t steps, task;
  bool first_order;
};

template <class R>
__device__ void zero(R* to, int64_t count) {
  for (int64_t e = threadIdx.x; to && e < count; e += blockDim.x) to[e] = 0;
}

// drates -= g v at one step, summed over what a rate shares. It asks for at least one.
template <class R>
__device__ void rate_gradients(Task<R>& s, const Chain<R>& chain, int64_t step) {
  const bool per_element = chain.drates.per_element;
  R *one = nullptr, shared = 0;
  for_each_tensor(s, [&](int tensor, int offset, int size) {
    R* dalpha = rates_of(chain.drates, tensor, size, step, chain.steps, chain.task);
    if (!dalpha) return;
    const R sum = tensor_gradient<R, false>(
        s, tensor, {per_element ? dalpha : nullptr, R(-1), true, s.cotangent + offset, true});
    if (per_element) return;
    shared += sum;
    one = dalpha;
    if (chain.drates.shared) return;
    const R total = block_sum(s, sum);
    if (threadIdx.x == 0) *dalpha += total;
  });
  if (!chain.drates.shared || !one) return;
  const R total = block_sum(s, shared);
  if (threadIdx.x == 0) *one += total;
}

// cotangent = dL/dtheta_K -> dL/dtheta_0. The support's examples are loaded.
template <class R>
__device__ void run_chain(Task<R>& s, const Chain<R>& chain) {
  const Layer<R>& last = s.last();
  const MlpRates<R>& drates = chain.drates;
  bool asked = false;  // for gradients of rates
  for_each_tensor(s, [&](int tensor, int, int size) {
    R* dalpha = rates_of(drates, tensor, size, 0, chain.steps, chain.task);
    asked = asked || dalpha;
    if (!drates.shared || tensor == 0)
      zero(dalpha, (drates.per_step ? chain.steps : 1) * (drates.per_element ? int64_t(size) : 1));
  });
  zero(chain.grads.dx, int64_t(s.n) * s.layer[0].in);
  zero(chain.grads.dy, int64_t(s.n) * last.out);
  for (int64_t k = chain.steps - 1; k >= 0 && (asked || !chain.first_order); k--) {
    copy(s.theta, chain.trajectory + k * s.params, s.params);
    for_each_tensor(s, [&](int tensor, int offset, int size) {
      const R* alpha = rates_of(chain.rates, tensor, size, k, chain.steps, 0);
      for (int e = threadIdx.x; !chain.first_order && e < size; e += blockDim.x)
        s.direction[offset + e] = alpha[chain.rates.per_element ? e : 0] * s.cotangent[offset + e];
    });
    __syncthreads();
    if (chain.first_order) {
      forward<R, false>(s);
      output_gradient(s);
      backward<R, false>(s);
    } else {
      forward<R, true>(s);
      output_gradient(s, true);
      backward<R, true>(s);
    }
    if (asked) rate_gradients(s, chain, k);
    __syncthreads();  // the old cotangent has been read
    if (chain.first_order) continue;
    for_each_tensor(s, [&](int tensor, int offset, int) {
      tensor_gradient<R, true>(s, tensor, {s.cotangent + offset, R(-1), true});
    });
    if (chain.grads.dx) input_gradient<R, true>(s, {chain.grads.dx, R(-1), true});
    if (chain.grads.dy) target_gradient(s, last.rd, {chain.grads.dy, R(-1), true});
    __syncthreads();
  }
}

}  // namespace fastmeta::cuda
