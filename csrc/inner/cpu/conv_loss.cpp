// conv_loss and conv_grad: one task on a thread.
#include "inner/cpu/conv_task.h"
#include "runtime/cpu/kernels.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
struct Work {
  Work(const ConvLoss<R>& c, const ConvLayout<R>& layout, bool backward, Scratch& scratch)
      : task(layout, c.examples.count, 0, scratch), pass(layout, task.shapes, c.examples.count, scratch) {
    theta = scratch.take<R>(layout.size);
    grad = backward ? scratch.take<R>(layout.gradient) : nullptr;
  }

  ConvTask<R> task;
  ConvPass<R> pass;
  ConvLoader<R> loader;
  R *theta, *grad;
};

}  // namespace

template <class R>
void conv_loss(const ConvLoss<R>& c) {
  const ConvLayout<R> layout(c.net, c.params, c.grads.dx);
  const bool backward = c.dparams.any() || c.grads.dx;
  for_each_task<Work<R>>(
      c.net,
      [&](Work<R>& w, int64_t t) {
        w.loader.load(layout, c.params, t, w.theta);
        w.pass.load(layout, w.task.shapes, c.examples.x, t);
        w.task.forward(w.theta, w.pass);
        c.loss[t] = w.task.loss(targets_of(c.net, c.examples, t), w.pass);
        const auto grads = cleared(c.net, c.grads, c.examples.count, t);
        if (grads.dy) subtract_rows(layout, c.examples.count, w.pass.doutputs, grads.dy);
        if (!backward) return;
        w.task.backward(w.theta, w.pass, w.pass.doutputs, w.grad, grads.dx);
        store_block(layout, w.grad, c.dparams, t);
      },
      c, layout, backward);
}

template void conv_loss(const ConvLoss<float>&);
template void conv_loss(const ConvLoss<double>&);

}  // namespace fastmeta::FASTMETA_ISA
