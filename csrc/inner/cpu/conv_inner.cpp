// See conv_inner.h.
#include "inner/cpu/conv_inner.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

constexpr int64_t kKeptBytes = 16 << 20;

}  // namespace

template <class R, class Call>
ConvInnerLoop<R, Call>::ConvInnerLoop(const Call& c, const ConvLayout<R>& layout, int64_t examples, bool backward, Scratch& scratch)
    : task(layout, examples, backward && !c.first_order && c.steps ? c.support.count : 0, scratch),
      call_(c),
      rates_(layout, c.rates, c.steps, scratch),
      drates_(layout, c.drates, c.steps, scratch) {
  const int64_t before = scratch.used();
  passes_.emplace_back(layout, task.shapes, c.support.count, scratch);
  const int64_t of_pass = scratch.used() - before;
  kept_ = backward && !c.first_order && of_pass * c.steps <= kKeptBytes;
  for (int64_t k = 1; kept_ && k < c.steps; k++) passes_.emplace_back(layout, task.shapes, c.support.count, scratch);
  for (int64_t k = 0; k <= (backward ? c.steps : least(c.steps, 1)); k++) thetas_.push_back(scratch.take<R>(layout.size));
  for (int64_t k = 0; k < (backward && drates_.asked() ? c.steps : 1); k++) grads_.push_back(scratch.take<R>(layout.gradient));
  v = backward ? scratch.take<R>(layout.size) : nullptr;
  vec_ = backward ? scratch.take<R>(layout.size) : nullptr;
}

template <class R, class Call>
void ConvInnerLoop<R, Call>::gradient(int64_t k, const void* y) {
  ConvPass<R>& p = pass(k);
  task.forward(theta(k), p);
  task.loss(y, p);
  task.backward(theta(k), p, p.doutputs, grad(k), nullptr);
}

template <class R, class Call>
const R* ConvInnerLoop<R, Call>::adapt(int64_t t) {
  const void* y = targets_of(call_.net, call_.support, t);
  loader_.load(task.layout, call_.params, t, theta(0));
  for (ConvPass<R>& each : passes_) each.load(task.layout, task.shapes, call_.support.x, t);
  for (int64_t k = 0; k < call_.steps; k++) {
    gradient(k, y);
    rates_.descend(k, theta(k), grad(k), theta(k + 1));
    flip(task.layout, theta(k + 1));
  }
  return theta(call_.steps);
}

template <class R, class Call>
void ConvInnerLoop<R, Call>::differentiate(int64_t t) {
  const void* y = targets_of(call_.net, call_.support, t);
  const auto grads = cleared(call_.net, call_.support_grads, call_.support.count, t);
  drates_.clear();
  for (int64_t k = call_.steps - 1; k >= 0; k--) {
    if (drates_.asked()) drates_.add(k, grad(k), v);
    if (call_.first_order) continue;
    if (!kept_ && k + 1 < call_.steps) gradient(k, y);
    rates_.descend(k, nullptr, v, vec_);
    flip(task.layout, vec_);
    task.curvature(theta(k), vec_, pass(k), y, v, grads.dx);
    if (grads.dy) subtract_rows(task.layout, call_.support.count, task.output_tangents(), grads.dy);
  }
  drates_.store(t);
  store_block(task.layout, v, call_.dparams, t);
}

#define INSTANTIATE(R)                           \
  template class ConvInnerLoop<R, ConvAdapt<R>>; \
  template class ConvInnerLoop<R, ConvMetaLoss<R>>;
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
