// mlp_meta_loss: one task on a thread, from the inner steps through the query loss to its whole meta-gradient; the parameters
// before each step stay in the thread's scratch memory. 3 n P multiply-adds a step, 9 n P a step back.
#include "kernels.h"
#include "mlp_inner.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
void mlp_meta_loss(const MlpMetaLoss<R>& c) {
  const int64_t S = c.support.count, Q = c.query.count, in = c.shape.width[0], out = c.shape.width[c.shape.layers];
  const int64_t params = count_params(c.shape, c.params), examples = S > Q ? S : Q;
  const int64_t kept = c.with_grads ? c.steps * params : 0;
  for_each_task<R>(c.shape, examples, c.with_grads, kept, [&](Task<R>& task, int64_t t) {
    const void* support_y = targets_of(c.shape, c.support, t);
    task.load_params(c.params, t);
    task.load_inputs(c.support.x + t * S * in, S);
    descend<R>(task, c.rates, support_y, c.steps, c.with_grads ? task.kept : nullptr, params);
    task.load_inputs(c.query.x + t * Q * in, Q);
    task.forward();
    c.loss[t] = task.output_gradient(targets_of(c.shape, c.query, t));
    if (!c.with_grads) return;

    MlpExampleGrads<R> query = examples_of(c.shape, c.query_grads, Q, t), support = examples_of(c.shape, c.support_grads, S, t);
    task.backward();
    if (query.dx) task.store_dx(query.dx, R(1), false);
    if (query.dy) task.store_dy(query.dy, R(1), false);
    task.take_cotangent();
    for (int64_t i = 0; support.dx && i < S * in; i++) support.dx[i] = 0;
    for (int64_t i = 0; support.dy && i < S * out; i++) support.dy[i] = 0;
    task.load_inputs(c.support.x + t * S * in, S);
    run_chain<R>(task, task.cotangent,
                 {c.rates, c.drates, support, support_y, task.kept, c.steps, params, t, c.first_order});
    store_params(task, task.cotangent, c.dparams, t);
  });
}

template void mlp_meta_loss(const MlpMetaLoss<float>&);
template void mlp_meta_loss(const MlpMetaLoss<double>&);

}  // namespace fastmeta::FASTMETA_ISA
