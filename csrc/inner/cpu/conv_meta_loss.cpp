// conv_meta_loss: one task on a thread, from the inner steps through the query loss to its whole meta-gradient.
#include "inner/cpu/conv_inner.h"
#include "runtime/cpu/kernels.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
struct Work {
  Work(const ConvMetaLoss<R>& c, const ConvLayout<R>& layout, Scratch& scratch)
      : loop(c, layout, most(c.support.count, c.query.count), c.with_grads, scratch),
        query(layout, loop.task.shapes, c.query.count, scratch) {}

  ConvInnerLoop<R, ConvMetaLoss<R>> loop;
  ConvPass<R> query;
};

}  // namespace

template <class R>
void conv_meta_loss(const ConvMetaLoss<R>& c) {
  const ConvLayout<R> layout(c.net, c.params, c.support_grads.dx || c.query_grads.dx);
  for_each_task<Work<R>>(
      c.net,
      [&](Work<R>& w, int64_t t) {
        const ConvTask<R>& task = w.loop.task;
        const R* adapted = w.loop.adapt(t);
        w.query.load(layout, task.shapes, c.query.x, t);
        task.forward(adapted, w.query);
        c.loss[t] = task.loss(targets_of(c.net, c.query, t), w.query);
        if (!c.with_grads) return;
        const auto grads = cleared(c.net, c.query_grads, c.query.count, t);
        if (grads.dy) subtract_rows(layout, c.query.count, w.query.doutputs, grads.dy);
        task.backward(adapted, w.query, w.query.doutputs, w.loop.v, grads.dx);
        w.loop.differentiate(t);
      },
      c, layout);
}

template void conv_meta_loss(const ConvMetaLoss<float>&);
template void conv_meta_loss(const ConvMetaLoss<double>&);

}  // namespace fastmeta::FASTMETA_ISA
