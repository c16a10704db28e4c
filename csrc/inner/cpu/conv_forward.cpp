// conv_forward, one task on a thread; backward takes the forward pass again.
#include "inner/cpu/conv_task.h"
#include "runtime/cpu/kernels.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
struct Work {
  Work(const ConvForward<R>& c, const ConvLayout<R>& layout, bool backward, Scratch& scratch)
      : task(layout, c.count, 0, scratch), pass(layout, task.shapes, c.count, scratch) {
    theta = scratch.take<R>(layout.size);
    grad = backward ? scratch.take<R>(layout.gradient) : nullptr;
  }

  void forward(const ConvForward<R>& c, int64_t t) {
    loader.load(task.layout, c.params, t, theta);
    pass.load(task.layout, task.shapes, c.x, t);
    task.forward(theta, pass);
  }

  ConvTask<R> task;
  ConvPass<R> pass;
  ConvLoader<R> loader;
  R *theta, *grad;
};

}  // namespace

template <class R>
void conv_forward_fwd(const ConvForward<R>& c) {
  const ConvLayout<R> layout(c.net, c.params, false);
  const int64_t n = c.count, width = c.net.outputs;
  for_each_task<Work<R>>(
      c.net,
      [&](Work<R>& w, int64_t t) {
        w.forward(c, t);
        store_rows(w.pass.outputs, n, width, c.out + t * n * width, layout.outputs);
      },
      c, layout, false);
}

template <class R>
void conv_forward_bwd(const ConvForward<R>& c) {
  const ConvLayout<R> layout(c.net, c.params, c.dx);
  const int64_t n = c.count, width = c.net.outputs;
  for_each_task<Work<R>>(
      c.net,
      [&](Work<R>& w, int64_t t) {
        w.forward(c, t);
        load_rows(c.dout + t * n * width, n, width, w.pass.doutputs, layout.outputs);
        w.task.backward(w.theta, w.pass, w.pass.doutputs, w.grad, cleared<R>(c.net, {c.dx}, n, t).dx);
        store_block(layout, w.grad, c.dparams, t);
      },
      c, layout, true);
}

template void conv_forward_fwd(const ConvForward<float>&);
template void conv_forward_fwd(const ConvForward<double>&);
template void conv_forward_bwd(const ConvForward<float>&);
template void conv_forward_bwd(const ConvForward<double>&);

}  // namespace fastmeta::FASTMETA_ISA
