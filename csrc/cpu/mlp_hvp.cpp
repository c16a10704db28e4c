// mlp_hvp, and the backward of mlp_grad: one task on a thread. 8 n P multiply-adds: the gradient of the weights is not needed.
#include "kernels.h"
#include "mlp_task.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
struct Work {
  Work(const MlpCurvature<R>& c, const Layout<R>& layout, Scratch& scratch)
      : task(c.shape, layout, c.examples.count, true, scratch),
        pass(c.shape, layout, c.examples.count, true, true, scratch) {
    theta = scratch.take<R>(layout.size);
    vec = scratch.take<R>(layout.size);
    product = scratch.take<R>(layout.gradient);
    dx = c.grads.dx ? scratch.take<R>(c.examples.count * layout.ld[0]) : nullptr;
  }

  Task<R> task;
  Pass<R> pass;
  R *theta, *vec, *product, *dx;
  bool loaded = false;
};

}  // namespace

template <class R>
void mlp_hvp(const MlpCurvature<R>& c) {
  const int64_t n = c.examples.count, in = c.shape.width[0], out = c.shape.width[c.shape.layers];
  const Layout<R> layout(c.shape, c.params, c.grads.dx);
  for_each_task<Work<R>>(c.shape, n, [&](Work<R>& w, int64_t t) {
    if (!w.loaded || !layout.shared) load_block(layout, c.params, t, w.theta);
    w.loaded = true;
    load_block(layout, c.vectors, t, w.vec);
    w.pass.load(c.shape, c.examples, t);
    const void* y = targets_of(c.shape, c.examples, t);
    w.task.forward(w.theta, w.pass);
    w.task.loss(y, w.pass);
    w.task.backward(w.theta, w.pass, nullptr);
    std::memset(w.product, 0, size_t(layout.gradient) * sizeof(R));
    w.task.curvature(w.theta, w.vec, w.pass, y, c.dloss ? c.dloss[t] : R(0), false, w.product);
    store_block(layout, w.product, c.dparams, t);
    const auto grads = examples_of(c.shape, c.grads, n, t);
    if (grads.dy) scale_rows(w.task.output_tangents(), n, out, layout.ld[layout.layers], R(-1), false, grads.dy);
    if (!grads.dx) return;
    std::memset(w.dx, 0, size_t(n * layout.ld[0]) * sizeof(R));
    w.task.input_tangent(w.theta, w.vec, w.pass, w.dx);
    store_rows(w.dx, n, in, grads.dx, layout.ld[0]);
  }, c, layout);
}

template void mlp_hvp(const MlpCurvature<float>&);
template void mlp_hvp(const MlpCurvature<double>&);

}  // namespace fastmeta::FASTMETA_ISA
