// See mlp_inner.h.
#include "mlp_inner.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
void descend(Task<R>& task, const MlpRates<const R>& rates, const void* y, int64_t steps, R* trajectory, int64_t params) {
  for (int64_t k = 0; k < steps; k++) {
    if (trajectory) task.store_flat(trajectory + k * params);
    task.forward();
    task.output_gradient(y);
    task.backward();
    for_each_row(task, [&](int tensor, int l, int64_t from, int64_t first, int64_t columns) {
      const auto alpha = rates_at(task, rates, tensor, k, steps, 0);
      R* row = (tensor % 2 ? task.theta.b[l] : task.theta.w[l]) + from;
      const R* gradient = (tensor % 2 ? task.grad.b[l] : task.grad.w[l]) + from;
      for (int64_t j = 0; j < columns; j++) row[j] -= alpha(first + j) * gradient[j];
    });
    task.refresh(task.theta);
  }
}

template <class R>
void zero_rates(const Task<R>& task, const Chain<R>& chain) {
  for (int tensor = 0; tensor < (chain.drates.shared ? 1 : 2 * task.s.layers); tensor++) {
    const int64_t size = chain.drates.per_element ? tensor_size(task, tensor) : 1;
    const auto first = rates_at(task, chain.drates, tensor, 0, chain.steps, chain.index);
    for (int64_t j = 0; first.value && j < size * (chain.drates.per_step ? chain.steps : 1); j++) first.value[j] = 0;
  }
}

template <class R>
void run_chain(Task<R>& task, Matrices<R>& v, const Chain<R>& chain) {
  zero_rates(task, chain);
  for (int64_t k = chain.steps - 1; k >= 0; k--) {
    task.load_flat(chain.trajectory + k * chain.params);
    task.forward();
    task.output_gradient(chain.y);
    task.backward();
    for_each_row(task, [&](int tensor, int l, int64_t from, int64_t first, int64_t columns) {
      const auto alpha = rates_at(task, chain.rates, tensor, k, chain.steps, 0);
      const auto dalpha = rates_at(task, chain.drates, tensor, k, chain.steps, chain.index);
      const R* gradient = (tensor % 2 ? task.grad.b[l] : task.grad.w[l]) + from;
      const R* cotangent = (tensor % 2 ? v.b[l] : v.w[l]) + from;
      R* scaled = (tensor % 2 ? task.vec.b[l] : task.vec.w[l]) + from;
      for (int64_t j = 0; j < columns; j++) scaled[j] = alpha(first + j) * cotangent[j];
      for (int64_t j = 0; dalpha.value && j < columns; j++) dalpha(first + j) -= gradient[j] * cotangent[j];
    });
    if (chain.first_order) continue;
    for (int l = 0; l < task.s.layers; l++)
      for (int64_t j = 0; !task.has_bias[l] && j < task.ld[l + 1]; j++) task.vec.b[l][j] = 0;
    task.refresh(task.vec);
    task.curvature(chain.y);
    if (chain.grads.dx) task.store_rdx(chain.grads.dx, R(-1), true);
    if (chain.grads.dy) task.store_rdy(chain.grads.dy, R(-1), true);
    for_each_row(task, [&](int tensor, int l, int64_t from, int64_t, int64_t columns) {
      R* cotangent = (tensor % 2 ? v.b[l] : v.w[l]) + from;
      const R* product = (tensor % 2 ? task.hv.b[l] : task.hv.w[l]) + from;
      for (int64_t j = 0; j < columns; j++) cotangent[j] -= product[j];
    });
  }
}

#define INSTANTIATE(R)                                                                                       \
  template void descend<R>(Task<R>&, const MlpRates<const R>&, const void*, int64_t, R*, int64_t);           \
  template void run_chain<R>(Task<R>&, Matrices<R>&, const Chain<R>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
