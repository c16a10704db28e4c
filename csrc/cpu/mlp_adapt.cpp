// mlp_adapt: one task on a thread; 3 n P multiply-adds a step forward, 9 n P a step backward. Kept for backward: [T, K, P].
#include "kernels.h"
#include "mlp_inner.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
struct Work {
  Work(const MlpAdapt<R>& c, const Layout<R>& layout, bool backward, Scratch& scratch)
      : task(c.shape, layout, c.support.count, backward, scratch),
        rates(layout, c.rates, c.steps, scratch),
        drates(layout, c.drates, c.steps, scratch),
        trajectory(task, c.support.count, c.steps, backward || c.trajectory, drates.asked(), scratch) {
    v = backward ? scratch.take<R>(layout.size) : nullptr;
    vec = backward ? scratch.take<R>(layout.size) : nullptr;
    dx = c.support_grads.dx ? scratch.take<R>(c.support.count * layout.ld[0]) : nullptr;
    dy = c.support_grads.dy ? scratch.take<R>(c.support.count * layout.ld[layout.layers]) : nullptr;
  }

  Task<R> task;
  InnerRates<R> rates;
  RateGradients<R> drates;
  Trajectory<R> trajectory;
  R *v, *vec, *dx, *dy;
  bool loaded = false;
};

// The parameters before step k in the trajectory that is kept, [T, K, P].
template <class R, class P>
MlpParams<P> kept_params(const MlpAdapt<R>& c, int64_t t, int64_t k) {
  MlpParams<P> found;
  int64_t params = 0;
  for (int l = 0; l < c.shape.layers; l++) params += c.shape.width[l + 1] * (c.shape.width[l] + (c.params.bias[l] ? 1 : 0));
  R* next = c.trajectory + (t * c.steps + k) * params;
  for (int l = 0; l < c.shape.layers; l++) {
    found.weight[l] = next;
    next += c.shape.width[l + 1] * c.shape.width[l];
    if (!c.params.bias[l]) continue;
    found.bias[l] = next;
    next += c.shape.width[l + 1];
  }
  return found;
}

}  // namespace

template <class R>
void mlp_adapt_fwd(const MlpAdapt<R>& c) {
  const Layout<R> layout(c.shape, c.params, false);
  for_each_task<Work<R>>(c.shape, c.support.count, [&](Work<R>& w, int64_t t) {
    if (!w.loaded) w.rates.load();
    if (!w.loaded || !layout.shared) load_block(layout, c.params, t, w.trajectory.step(0).theta);
    w.loaded = true;
    w.trajectory.load(c.shape, c.support, t);
    descend(w.task, w.trajectory, w.rates, targets_of(c.shape, c.support, t), c.steps);
    for (int64_t k = 0; c.trajectory && k < c.steps; k++)
      store_block(layout, w.trajectory.step(k).theta, kept_params<R, R>(c, t, k), 0);
    store_block(layout, w.trajectory.step(c.steps).theta, c.adapted, t);
  }, c, layout, false);
}

template <class R>
void mlp_adapt_bwd(const MlpAdapt<R>& c) {
  const int64_t n = c.support.count, in = c.shape.width[0], out = c.shape.width[c.shape.layers];
  const Layout<R> layout(c.shape, c.params, c.support_grads.dx);
  for_each_task<Work<R>>(c.shape, n, [&](Work<R>& w, int64_t t) {
    const void* y = targets_of(c.shape, c.support, t);
    if (!w.loaded) w.rates.load();
    w.loaded = true;
    w.trajectory.load(c.shape, c.support, t);
    for (int64_t k = 0; k < c.steps; k++) {
      auto& step = w.trajectory.step(k);
      load_block<R>(layout, kept_params<R, const R>(c, t, k), 0, step.theta);
      w.task.forward(step.theta, step.pass);
      w.task.loss(y, step.pass);
      w.task.backward(step.theta, step.pass, w.drates.asked() ? step.grad : nullptr);
    }
    load_block(layout, c.dadapted, t, w.v);
    w.drates.clear();
    run_chain<R>({w.task, w.trajectory, w.rates, w.drates, y, c.steps, c.first_order, w.vec, w.dx, w.dy}, w.v);
    const auto grads = examples_of(c.shape, c.support_grads, n, t);
    if (grads.dx) store_rows(w.dx, n, in, grads.dx, layout.ld[0]);
    if (grads.dy) store_rows(w.dy, n, out, grads.dy, layout.ld[layout.layers]);
    if (w.drates.asked()) w.drates.store(t);
    store_block(layout, w.v, c.dparams, t);
  }, c, layout, true);
}

template void mlp_adapt_fwd(const MlpAdapt<float>&);
template void mlp_adapt_fwd(const MlpAdapt<double>&);
template void mlp_adapt_bwd(const MlpAdapt<float>&);
template void mlp_adapt_bwd(const MlpAdapt<double>&);

}  // namespace fastmeta::FASTMETA_ISA
