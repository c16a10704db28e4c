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
}

template <class R>
void InnerRates<R>::load() {
  for (int64_t k = 0; rates_.per_element && k < kinds_; k++)
    load_block<R>(layout_, as_params(layout_, rates_, k, kinds_, 0), 0, blocks_ + k * layout_.size);
}

template <class R>
void InnerRates<R>::descend(int64_t k, const R* base, const R* x, R* out) const {
  k = kinds_ > 1 ? k : 0;
  if (rates_.per_element) {
    const R* alpha = blocks_ + k * layout_.size;
    if (base) for (int64_t i = 0; i < layout_.gradient; i++) out[i] = base[i] - alpha[i] * x[i];
    else for (int64_t i = 0; i < layout_.gradient; i++) out[i] = -(alpha[i] * x[i]);
    return;
  }
  layout_.for_each_tensor([&](int tensor, int64_t begin, int64_t rows, int64_t width) {
    const R alpha = rates_.value[rates_.shared ? 0 : tensor][k];
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
  R* to = sums(k);
  layout_.for_each_tensor([&](int tensor, int64_t begin, int64_t rows, int64_t width) {
    to[drates_.shared ? 0 : tensor] -= inner_product(grad + begin, v + begin, rows, width);
  });
}

template <class R>
void RateGradients<R>::store(int64_t task) const {
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

template <class R>
void descend(const Task<R>& task, Trajectory<R>& trajectory, const InnerRates<R>& rates, const void* y, int64_t steps) {
  for (int64_t k = 0; k < steps; k++) {
    typename Trajectory<R>::Step& step = trajectory.step(k);
    R* next = trajectory.step(k + 1).theta;
    task.forward(step.theta, step.pass);
    task.loss(y, step.pass);
    task.backward(step.theta, step.pass, step.grad);
    rates.descend(k, step.theta, step.grad, next);
    flip(task.layout, next);
  }
}

template <class R>
void run_chain(const Chain<R>& c, R* v) {
  const Layout<R>& layout = c.task.layout;
  const int64_t n = c.trajectory.step(0).pass.n, out = layout.ld[layout.layers];
  if (c.dx) std::memset(c.dx, 0, size_t(n * layout.ld[0]) * sizeof(R));
  if (c.dy) std::memset(c.dy, 0, size_t(n * out) * sizeof(R));
  for (int64_t k = c.steps - 1; k >= 0; k--) {
    const typename Trajectory<R>::Step& step = c.trajectory.step(k);
    if (c.drates.asked()) c.drates.add(k, step.grad, v);
    if (c.first_order) continue;
    c.rates.descend(k, nullptr, v, c.vec);
    flip(layout, c.vec);
    c.task.curvature(step.theta, c.vec, step.pass, c.y, R(0), false, v);
    if (c.dx) c.task.input_tangent(step.theta, c.vec, step.pass, c.dx);
    const R* rd = c.task.output_tangents();
    for (int64_t i = 0; c.dy && i < n * out; i++) c.dy[i] -= rd[i];
  }
}

#define INSTANTIATE(R)                                                                                                 \
  template class InnerRates<R>;                                                                                        \
  template class RateGradients<R>;                                                                                     \
  template class Trajectory<R>;                                                                                        \
  template void descend<R>(const Task<R>&, Trajectory<R>&, const InnerRates<R>&, const void*, int64_t); \
  template void run_chain<R>(const Chain<R>&, R*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
