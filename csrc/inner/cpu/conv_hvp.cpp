// conv_hvp, and the backward of conv_grad: one task on a thread.
#include "inner/cpu/conv_task.h"
#include "runtime/cpu/kernels.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
struct Work {
  Work(const ConvCurvature<R>& c, const ConvLayout<R>& layout, Scratch& scratch)
      : task(layout, c.examples.count, c.examples.count, scratch), pass(layout, task.shapes, c.examples.count, scratch) {
    theta = scratch.take<R>(layout.size);
    vec = scratch.take<R>(layout.size);
    product = scratch.take<R>(layout.gradient);
  }

  ConvTask<R> task;
  ConvPass<R> pass;
  ConvLoader<R> loader;
  R *theta, *vec, *product;
};

template <class R>
void scale(R* x, int64_t count, R by) {
  for (int64_t i = 0; i < count; i++) x[i] *= by;
}

// product = dloss g + H v, and the same derivatives to the examples, g being the loss's gradient.
template <class R>
void differentiate(const ConvCurvature<R>& c, Work<R>& w, int64_t t) {
  const ConvLayout<R>& layout = w.task.layout;
  const int64_t n = c.examples.count;
  const auto grads = cleared(c.net, c.grads, n, t);
  w.task.backward(w.theta, w.pass, w.pass.doutputs, w.product, c.dloss ? grads.dx : nullptr);
  const R dloss = c.dloss ? c.dloss[t] : R(0);
  if (grads.dy) subtract_rows(layout, n, w.pass.doutputs, grads.dy), scale(grads.dy, n * c.net.outputs, dloss);
  if (grads.dx) scale(grads.dx, image_numbers(c.net, n), dloss);
  if (c.dloss) scale(w.product, layout.gradient, dloss);
  else std::memset(w.product, 0, size_t(layout.gradient) * sizeof(R));  // where the gradient is no number too
  w.task.curvature(w.theta, w.vec, w.pass, targets_of(c.net, c.examples, t), w.product, grads.dx);
  if (grads.dy) subtract_rows(layout, n, w.task.output_tangents(), grads.dy);
}

}  // namespace

template <class R>
void conv_hvp(const ConvCurvature<R>& c) {
  const ConvLayout<R> layout(c.net, c.params, c.grads.dx);
  for_each_task<Work<R>>(
      c.net,
      [&](Work<R>& w, int64_t t) {
        const void* y = targets_of(c.net, c.examples, t);
        w.loader.load(layout, c.params, t, w.theta);
        load_block(layout, c.vectors, t, w.vec);
        w.pass.load(layout, w.task.shapes, c.examples.x, t);
        w.task.forward(w.theta, w.pass);
        w.task.loss(y, w.pass);
        if (c.gauss_newton) w.task.gauss_newton(w.theta, w.vec, w.pass, y, w.product);
        else differentiate(c, w, t);
        store_block(layout, w.product, c.dparams, t);
      },
      c, layout);
}

template void conv_hvp(const ConvCurvature<float>&);
template void conv_hvp(const ConvCurvature<double>&);

}  // namespace fastmeta::FASTMETA_ISA
