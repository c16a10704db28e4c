// mlp_forward: one task on a thread; n P multiply-adds forward, 3 n P backward.
#include "runtime/cpu/kernels.h"
#include "inner/cpu/mlp_task.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
struct Work {
  Work(const MlpForward<R>& c, const Layout<R>& layout, bool backward, Scratch& scratch)
      : task(c.shape, layout, c.count, false, scratch), pass(c.shape, layout, c.count, true, false, scratch) {
    theta = scratch.take<R>(layout.size);
    grad = backward ? scratch.take<R>(layout.gradient) : nullptr;
    dx = c.dx ? scratch.take<R>(c.count * layout.ld[0]) : nullptr;
  }

  void forward(const MlpForward<R>& c, int64_t t) {
    loader.load(task.layout, c.params, t, theta);
    pass.load(c.shape, {c.count, c.x}, t);
    task.forward(theta, pass);
  }

  Task<R> task;
  Pass<R> pass;
  Loader<R> loader;
  R *theta, *grad, *dx;
};

}  // namespace

template <class R>
void mlp_forward_fwd(const MlpForward<R>& c) {
  const int64_t n = c.count, out = c.shape.width[c.shape.layers];
  const Layout<R> layout(c.shape, c.params, false);
  for_each_task<Work<R>>(
      c.shape, n,
      [&](Work<R>& w, int64_t t) {
        w.forward(c, t);
        store_rows(w.pass.x[layout.layers], n, out, c.out + t * n * out, layout.ld[layout.layers]);
      },
      c, layout, false);
}

template <class R>
void mlp_forward_bwd(const MlpForward<R>& c) {
  const int64_t n = c.count, in = c.shape.width[0], out = c.shape.width[c.shape.layers];
  const Layout<R> layout(c.shape, c.params, c.dx);
  for_each_task<Work<R>>(
      c.shape, n,
      [&](Work<R>& w, int64_t t) {
        w.forward(c, t);
        load_rows(c.dout + t * n * out, n, out, w.pass.d[layout.layers], layout.ld[layout.layers]);
        w.task.backward(w.theta, w.pass, any_asked(c.dparams) ? w.grad : nullptr);
        store_block(layout, w.grad, c.dparams, t);
        if (!c.dx) return;
        w.task.input_gradient(w.theta, w.pass, w.dx);
        store_rows(w.dx, n, in, c.dx + t * n * in, layout.ld[0]);
      },
      c, layout, true);
}

template void mlp_forward_fwd(const MlpForward<float>&);
template void mlp_forward_fwd(const MlpForward<double>&);
template void mlp_forward_bwd(const MlpForward<float>&);
template void mlp_forward_bwd(const MlpForward<double>&);

}  // namespace fastmeta::FASTMETA_ISA
