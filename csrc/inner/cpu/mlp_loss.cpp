// mlp_loss and mlp_grad: one task on a thread; n P multiply-adds for the loss, 3 n P with its gradient.
#include "runtime/cpu/kernels.h"
#include "inner/cpu/mlp_task.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
struct Work {
  Work(const MlpLoss<R>& c, const Layout<R>& layout, Scratch& scratch)
      : task(c.shape, layout, c.examples.count, false, scratch), pass(c.shape, layout, c.examples.count, true, false, scratch) {
    theta = scratch.take<R>(layout.size);
    grad = any_asked(c.dparams) ? scratch.take<R>(layout.gradient) : nullptr;
    dx = c.grads.dx ? scratch.take<R>(c.examples.count * layout.ld[0]) : nullptr;
  }

  Task<R> task;
  Pass<R> pass;
  Loader<R> loader;
  R *theta, *grad, *dx;
};

}  // namespace

template <class R>
void mlp_loss(const MlpLoss<R>& c) {
  const int64_t n = c.examples.count, in = c.shape.width[0], out = c.shape.width[c.shape.layers];
  const Layout<R> layout(c.shape, c.params, c.grads.dx);
  const bool asks_params = any_asked(c.dparams);
  for_each_task<Work<R>>(
      c.shape, n,
      [&](Work<R>& w, int64_t t) {
        w.loader.load(layout, c.params, t, w.theta);
        w.pass.load(c.shape, c.examples, t);
        w.task.forward(w.theta, w.pass);
        c.loss[t] = w.task.loss(targets_of(c.shape, c.examples, t), w.pass);
        if (asks_params || c.grads.dx) w.task.backward(w.theta, w.pass, w.grad);
        if (asks_params) store_block(layout, w.grad, c.dparams, t);
        const auto grads = examples_of(c.shape, c.grads, n, t);
        if (grads.dy) store_negated(w.pass.d[layout.layers], n, out, layout.ld[layout.layers], grads.dy);
        if (!grads.dx) return;
        w.task.input_gradient(w.theta, w.pass, w.dx);
        store_rows(w.dx, n, in, grads.dx, layout.ld[0]);
      },
      c, layout);
}

template void mlp_loss(const MlpLoss<float>&);
template void mlp_loss(const MlpLoss<double>&);

}  // namespace fastmeta::FASTMETA_ISA
