// See mlp_inner.h.
#include "mlp_inner.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
int64_t steps_apart(const MlpRates<R>& rates, int64_t steps) {
  return rates.per_step ? steps : 1;
}

// The rates of each element at step k of `index`, as tensors of parameters.
template <class R, class P>
MlpParams<P> as_params(const Layout<R>& layout, const MlpRates<P>& rates, int64_t k, int64_t kinds, int64_t index) {
  MlpParams<P> found;
  for (int l = 0; l < layout.layers; l++) {
    const Layer& a = layout.layer[l];
    const int64_t at = index * kinds + k;
    if (rates.value[2 * l]) found.weight[l] = rates.value[2 * l] + at * a.in * a.out;
    if (rates.value[2 * l + 1]) found.bias[l] = rates.value[2 * l + 1] + at * a.out;
  }
  return found;
}

// sum a * b over matrices [rows, width].
template <class R>
R inner_product(const R* a, const R* b, int64_t rows, int64_t width) {
  const int64_t ld = padded<R>(width), whole = width / kLanes<R> * kLanes<R>;
  Vector<R> total = {};
  for (int64_t i = 0; i < rows; i++) {
    Vector<R> sum = {};
    for (int64_t j = 0; j < whole; j += kLanes<R>) sum += load(a + i * ld + j) * load(b + i * ld + j);
    if (whole < width) sum += first_lanes<R>(load(a + i * ld + whole) * load(b + i * ld + whole), width - whole);
    total += sum;
  }
  return sum_lanes<R>(total);
}

}  // namespace

template <class R>
InnerRates<R>::InnerRates(const Layout<R>& layout, const MlpRates<const R>& rates, int64_t steps, Scratch& scratch)
    : layout_(layout), rates_(rates), kinds_(steps_apart(rates, steps)) {
  blocks_ = rates.per_element ? scratch.take<R>(kinds_ * layout.size) : nullptr;
  for (int64_t k = 0; blocks_ && k < kinds_; k++)
    load_block<R>(layout, as_params(layout, rates, k, kinds_, 0), 0, blocks_ + k * layout.size);
}

template <class R>
R InnerRates<R>::of_tensor(int64_t k, int tensor) const {
  return rates_.value[rates_.shared ? 0 : tensor][kinds_ > 1 ? k : 0];
}

template <class R>
void InnerRates<R>::descend(int64_t k, const R* base, const R* x, R* out) const {
  if (rates_.per_element) {
    const R* alpha = blocks_ + (kinds_ > 1 ? k : 0) * layout_.size;
    if (base) for (int64_t i = 0; i < layout_.gradient; i++) out[i] = base[i] - alpha[i] * x[i];
    else for (int64_t i = 0; i < layout_.gradient; i++) out[i] = -(alpha[i] * x[i]);
    return;
  }
  layout_.for_each_tensor([&](int tensor, int64_t begin, int64_t rows, int64_t width) {
    const R alpha = of_tensor(k, tensor);
    const int64_t end = begin + rows * padded<R>(width);
    if (base) for (int64_t i = begin; i < end; i++) out[i] = base[i] - alpha * x[i];
    else for (int64_t i = begin; i < end; i++) out[i] = -(alpha * x[i]);
  });
}

template <class R>
RateGradients<R>::RateGradients(const Layout<R>& layout, const MlpRates<R>& drates, int64_t steps, Scratch& scratch)
    : layout_(layout), drates_(drates), kinds_(steps_apart(drates, steps)) {
  for (const R* value : drates.value) asked_ = asked_ || value;
  blocks_ = asked_ && drates.per_element ? scratch.take<R>(kinds_ * layout.gradient) : nullptr;
  sums_ = asked_ ? scratch.take<R>(kinds_ * 2 * kMaxLayers) : nullptr;
}

template <class R>
void RateGradients<R>::clear() {
  for (int64_t i = 0; blocks_ && i < kinds_ * layout_.gradient; i++) blocks_[i] = 0;
  for (int64_t i = 0; sums_ && i < kinds_ * 2 * kMaxLayers; i++) sums_[i] = 0;
}

template <class R>
void RateGradients<R>::add(int64_t k, const R* grad, const R* v) {
  if (blocks_) {
    R* to = block(k);
    for (int64_t i = 0; i < layout_.gradient; i++) to[i] -= grad[i] * v[i];
    return;
  }
  layout_.for_each_tensor([&](int tensor, int64_t begin, int64_t rows, int64_t width) {
    add(k, tensor, -inner_product(grad + begin, v + begin, rows, width));
  });
}

template <class R>
void RateGradients<R>::store(int64_t task) const {
  if (!asked_) return;
  for (int64_t k = 0; blocks_ && k < kinds_; k++)
    store_block<R>(layout_, block(k), as_params(layout_, drates_, k, kinds_, task), 0);
  for (int64_t k = 0; !blocks_ && k < kinds_; k++)
    for (int tensor = 0; tensor < 2 * kMaxLayers; tensor++)
      if (drates_.value[tensor]) drates_.value[tensor][task * kinds_ + k] = sums(k)[tensor];
}

template <class R>
Trajectory<R>::Trajectory(const Task<R>& task, int64_t examples, int64_t steps, bool kept, bool keeps_gradients,
                          Scratch& scratch)
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

#define INSTANTIATE(R)                           \
  template class InnerRates<R>;                  \
  template class RateGradients<R>;               \
  template class Trajectory<R>;                  \
  template class InnerLoop<R, MlpAdapt<R>>;      \
  template class InnerLoop<R, MlpMetaLoss<R>>;
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
