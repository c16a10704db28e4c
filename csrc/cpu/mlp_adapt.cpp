// mlp_adapt: one task on a thread; 3 n P multiply-adds a step forward, 9 n P a step backward. Kept for backward: [T, K, P].
#include "kernels.h"
#include "mlp_inner.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
void mlp_adapt_fwd(const MlpAdapt<R>& c) {
  const int64_t n = c.support.count, in = c.shape.width[0], params = count_params(c.shape, c.params);
  for_each_task<R>(c.shape, n, false, 0, [&](Task<R>& task, int64_t t) {
    task.load_params(c.params, t);
    task.load_inputs(c.support.x + t * n * in, n);
    descend<R>(task, c.rates, targets_of(c.shape, c.support, t), c.steps,
               c.trajectory ? c.trajectory + t * c.steps * params : nullptr, params);
    store_params(task, task.theta, c.adapted, t);
  });
}

template <class R>
void mlp_adapt_bwd(const MlpAdapt<R>& c) {
  const int64_t n = c.support.count, in = c.shape.width[0], out = c.shape.width[c.shape.layers];
  const int64_t params = count_params(c.shape, c.params);
  for_each_task<R>(c.shape, n, true, 0, [&](Task<R>& task, int64_t t) {
    MlpExampleGrads<R> grads = examples_of(c.shape, c.support_grads, n, t);
    for (int64_t i = 0; grads.dx && i < n * in; i++) grads.dx[i] = 0;
    for (int64_t i = 0; grads.dy && i < n * out; i++) grads.dy[i] = 0;
    task.load_params(c.params, t);
    task.load_inputs(c.support.x + t * n * in, n);
    task.load_cotangent(c.dadapted, t);
    run_chain<R>(task, task.cotangent,
                 {c.rates, c.drates, grads, targets_of(c.shape, c.support, t), c.trajectory + t * c.steps * params, c.steps,
                  params, t, c.first_order});
    store_params(task, task.cotangent, c.dparams, t);
  });
}

template void mlp_adapt_fwd(const MlpAdapt<float>&);
template void mlp_adapt_fwd(const MlpAdapt<double>&);
template void mlp_adapt_bwd(const MlpAdapt<float>&);
template void mlp_adapt_bwd(const MlpAdapt<double>&);

}  // namespace fastmeta::FASTMETA_ISA
