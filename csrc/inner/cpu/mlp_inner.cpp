// See mlp_inner.h.
#include "inner/cpu/mlp_inner.h"

namespace fastmeta::FASTMETA_ISA {
template <class R>
Trajectory<R>::Trajectory(const Task<R>& task, int64_t examples, int64_t steps, bool kept, bool keeps_gradients, Scratch& scratch)
    : kept_(kept) {
  const Layout<R>& layout = task.layout;
  inputs_ = scratch.take<R>(examples * layout.ld[0]);
  R* grad = scratch.take<R>(layout.gradient);
  for (int64_t k = 0; k <= (kept ? steps : least(steps, 1)); k++) {
    R* theta = scratch.take<R>(layout.size);
    if (kept && keeps_gradients && k < steps) grad = scratch.take<R>(layout.gradient);
    steps_.push_back({theta, grad, Pass<R>(task.shape, layout, k < steps || !steps ? examples : 0, false, kept, scratch)});
  }
}

template <class R>
void Trajectory<R>::load(const MlpShape& shape, const MlpExamples<R>& support, int64_t t) {
  const R* inputs = load_inputs(shape, support, t, inputs_);
  for (Step& step : steps_) step.pass.n = support.count, step.pass.inputs = inputs;
}

template <class R, class Call>
InnerLoop<R, Call>::InnerLoop(const Call& call, const Layout<R>& layout, int64_t examples, bool backward, Scratch& scratch)
    : task(call.shape, layout, examples, backward, scratch),
      call_(call),
      rates_(layout, call.rates, call.steps, scratch),
      drates_(layout, call.drates, call.steps, scratch),
      trajectory_(task, call.support.count, call.steps, backward, drates_.asked(), scratch) {
  v = backward ? scratch.take<R>(layout.size) : nullptr;
  vec_ = backward ? scratch.take<R>(layout.size) : nullptr;
  dx_ = call.support_grads.dx ? scratch.take<R>(call.support.count * layout.ld[0]) : nullptr;
  dy_ = call.support_grads.dy ? scratch.take<R>(call.support.count * layout.ld[layout.layers]) : nullptr;
}

template <class R, class Call>
const R* InnerLoop<R, Call>::adapt(int64_t t) {
  const void* y = targets_of(call_.shape, call_.support, t);
  loader_.load(task.layout, call_.params, t, trajectory_.step(0).theta);
  trajectory_.load(call_.shape, call_.support, t);
  for (int64_t k = 0; k < call_.steps; k++) {
    typename Trajectory<R>::Step& step = trajectory_.step(k);
    R* next = trajectory_.step(k + 1).theta;
    task.forward(step.theta, step.pass);
    task.loss(y, step.pass);
    task.backward(step.theta, step.pass, step.grad);
    rates_.descend(k, step.theta, step.grad, next);
    flip(task.layout, next);
  }
  return trajectory_.step(call_.steps).theta;
}

template <class R, class Call>
void InnerLoop<R, Call>::run_chain(const void* y) {
  const Layout<R>& layout = task.layout;
  const int64_t n = call_.support.count, out = layout.ld[layout.layers];
  if (dx_) std::memset(dx_, 0, size_t(n * layout.ld[0]) * sizeof(R));
  if (dy_) std::memset(dy_, 0, size_t(n * out) * sizeof(R));
  for (int64_t k = call_.steps - 1; k >= 0; k--) {
    const typename Trajectory<R>::Step& step = trajectory_.step(k);
    if (drates_.asked()) drates_.add(k, step.grad, v);
    if (call_.first_order) continue;
    rates_.descend(k, nullptr, v, vec_);
    flip(layout, vec_);
    task.curvature(step.theta, vec_, step.pass, y, R(0), false, v);
    if (dx_) task.input_tangent(step.theta, vec_, step.pass, dx_);
    const R* rd = task.output_tangents();
    for (int64_t i = 0; dy_ && i < n * out; i++) dy_[i] -= rd[i];
  }
}

template <class R, class Call>
void InnerLoop<R, Call>::differentiate(int64_t t) {
  const int64_t n = call_.support.count, in = call_.shape.width[0], out = call_.shape.width[call_.shape.layers];
  drates_.clear();
  run_chain(targets_of(call_.shape, call_.support, t));
  const auto grads = examples_of(call_.shape, call_.support_grads, n, t);
  if (grads.dx) store_rows(dx_, n, in, grads.dx, padded<R>(in));
  if (grads.dy) store_rows(dy_, n, out, grads.dy, padded<R>(out));
  drates_.store(t);
  store_block(task.layout, v, call_.dparams, t);
}

#define INSTANTIATE(R)                      \
  template class Trajectory<R>;             \
  template class InnerLoop<R, MlpAdapt<R>>; \
  template class InnerLoop<R, MlpMetaLoss<R>>;
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
