// The inner loop of one task and the chain of Hessian-vector products that runs back through it.
#pragma once
#include "mlp_task.h"

namespace fastmeta::FASTMETA_ISA {

// The rates of one parameter tensor at one step: alpha(j) for element j.
template <class R>
struct RateView {
  R* value;
  bool per_element;
  R& operator()(int64_t element) const { return value[per_element ? element : 0]; }
};

template <class R>
int64_t tensor_size(const Task<R>& task, int tensor) {
  const int l = tensor / 2;
  return task.s.width[l + 1] * (tensor % 2 ? 1 : task.s.width[l]);
}

// `index`: which copy of the rates, one for each task in drates, 0 in rates.
template <class R, class P>
RateView<P> rates_at(const Task<R>& task, const MlpRates<P>& rates, int tensor, int64_t step, int64_t steps, int64_t index) {
  const int64_t size = rates.per_element ? tensor_size(task, tensor) : 1;
  P* value = rates.value[rates.shared ? 0 : tensor];
  if (!value) return {nullptr, rates.per_element};
  return {value + (index * (rates.per_step ? steps : 1) + (rates.per_step ? step : 0)) * size, rates.per_element};
}

// `steps` steps of inner SGD on the inputs that are loaded; the parameters before each go to trajectory [steps, P] if given.
template <class R>
void descend(Task<R>& task, const MlpRates<const R>& rates, const void* y, int64_t steps, R* trajectory, int64_t params);

template <class R>
struct Chain {
  const MlpRates<const R>& rates;
  const MlpRates<R>& drates;       // this task's are written
  MlpExampleGrads<R> grads;        // of this task's support, added to; null where not asked for
  const void* y;
  const R* trajectory;             // [steps, params]
  int64_t steps, params, index;    // index: the task
  bool first_order;
};

// v = dL/dtheta_K -> dL/dtheta_0, in place. The support's inputs are loaded.
template <class R>
void run_chain(Task<R>& task, Matrices<R>& v, const Chain<R>& chain);

}  // namespace fastmeta::FASTMETA_ISA
