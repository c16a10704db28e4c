// mlp_adapt: one task on a thread; 3 n P multiply-adds a step forward, 9 n P a step backward, which takes the steps again: the
// trajectories of all tasks would leave the cache, and to read them back costs as much.
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
        trajectory(task, c.support.count, c.steps, backward, drates.asked(), scratch) {
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

template <class R>
void adapt(const MlpAdapt<R>& c, Work<R>& w, int64_t t) {
  if (!w.loaded) w.rates.load();
  if (!w.loaded || !w.task.layout.shared) load_block(w.task.layout, c.params, t, w.trajectory.step(0).theta);
  w.loaded = true;
  w.trajectory.load(c.shape, c.support, t);
  descend(w.task, w.trajectory, w.rates, targets_of(c.shape, c.support, t), c.steps);
}

}  // namespace

template <class R>
void mlp_adapt_fwd(const MlpAdapt<R>& c) {
  const Layout<R> layout(c.shape, c.params, false);
  for_each_task<Work<R>>(c.shape, c.support.count, [&](Work<R>& w, int64_t t) {
    adapt(c, w, t);
    store_block(layout, w.trajectory.step(c.steps).theta, c.adapted, t);
  }, c, layout, false);
}

template <class R>
void mlp_adapt_bwd(const MlpAdapt<R>& c) {
  const int64_t n = c.support.count, in = c.shape.width[0], out = c.shape.width[c.shape.layers];
  const Layout<R> layout(c.shape, c.params, c.support_grads.dx);
  for_each_task<Work<R>>(c.shape, n, [&](Work<R>& w, int64_t t) {
    adapt(c, w, t);
    load_block(layout, c.dadapted, t, w.v);
    w.drates.clear();
    run_chain<R>({w.task, w.trajectory, w.rates, w.drates, targets_of(c.shape, c.support, t), c.steps, c.first_order, w.vec, w.dx, w.dy}, w.v);
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
