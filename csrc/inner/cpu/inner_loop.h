// The inner loop of one task, theta_{k+1} = theta_k - alpha_k * grad_k, and the chain of Hessian-vector products back through it,
// v_k = v_{k+1} - H_k (alpha_k * v_{k+1}), for every network; with an optimiser its step and the adjoint of that. What the steps leave is
// kept where it is small (kKeptBytes), else computed again on the way back: memory grows with the steps by their parameters, and an
// optimiser's state, alone.
#pragma once
#include <vector>

#include "inner/cpu/inner_optimiser.h"
#include "inner/cpu/network.h"

namespace fastmeta::FASTMETA_ISA {

// Bytes of a thread, half of the last cache of the AMD EPYC, 2 cores, where it was measured (2026-11-25): more comes back from memory as
// slowly as it is computed.
constexpr int64_t kKeptBytes = 16 << 20;

// One task after another on one thread. Call: AdaptCall or MetaLossCall of network N.
template <class R, class N, class Call>
class InnerLoop {
 public:
  // `examples`: the most that `network` will see.
  InnerLoop(const Call& call, const LayoutOf<R, N>& layout, int64_t examples, bool backward, Scratch& scratch);

  const R* adapt(int64_t t);      // theta_K of task t, a whole block
  void differentiate(int64_t t);  // after adapt(), with dL/dtheta_K in `v`: writes the gradients to all that adapt() took

  R* statistics = nullptr;  // where adapt() leaves those of its batches, so many of each
  int64_t of_batch = 0;

  const bool second_order;
  Network<R, N> network;
  R* v;  // a whole block

 private:
  PassOf<R, N>& pass(int64_t k) { return passes_[size_t(kept_ ? k : 0)]; }
  R* theta(int64_t k) { return thetas_[size_t(thetas_.size() > 2 || !k ? k : 1)]; }
  R* grad(int64_t k) { return grads_[size_t(grads_.size() > 1 ? k : 0)]; }
  int64_t batch(int64_t t, int64_t k) const { return call_.batch_per_step ? t * call_.steps + k : t; }
  void load(PassOf<R, N>& pass, int64_t batch) {
    pass.load(network, call_.support.x + batch * call_.support.count * call_.shape.example_size(), call_.support.count);
  }
  Targets<R> targets(int64_t t, int64_t k) const { return targets_of(call_.shape, call_.support, batch(t, k)); }
  void gradient(int64_t t, int64_t k);
  void curve(int64_t t, int64_t k, const ExampleGrads<R>& grads);

  const Call& call_;
  InnerRates<R, N> rates_;
  RateGradients<R, N> drates_;
  OptimiserSteps<R, N> optimiser_;
  Loader<R, N> loader_;
  std::vector<PassOf<R, N>> passes_;  // of every step, or of one after the other
  std::vector<R*> thetas_, grads_;    // thetas_: all, or the first and the last
  bool kept_;
  R* vec_;  // -alpha v, or the gradient to the step's; a whole block
};

template <class R, class N, class Call>
InnerLoop<R, N, Call>::InnerLoop(const Call& call, const LayoutOf<R, N>& layout, int64_t examples, bool backward, Scratch& scratch)
    : second_order(backward && !call.first_order && call.steps),
      network(layout, examples, second_order ? call.support.count : 0, scratch),
      call_(call),
      rates_(layout, call.rates, call.steps, scratch),
      drates_(layout, call.drates, call.steps, scratch),
      optimiser_(layout, call.optimiser, call.steps, backward, scratch) {
  const bool every = second_order || (backward && optimiser_);  // whether the parameters before each step are kept
  const int64_t before = scratch.used();
  passes_.emplace_back(network, call.support.count, true, second_order, scratch);
  kept_ = second_order && (scratch.used() - before) * call.steps <= kKeptBytes;
  for (int64_t k = 1; kept_ && k < call.steps; k++)
    passes_.emplace_back(network, call.support.count, call.batch_per_step, second_order, scratch);
  for (int64_t k = 0; k <= (every ? call.steps : least(call.steps, 1)); k++) thetas_.push_back(scratch.take<R>(layout.size));
  for (int64_t k = 0; k < (backward && (drates_.asked() || optimiser_) ? call.steps : 1); k++)
    grads_.push_back(scratch.take<R>(layout.gradient));
  v = backward ? scratch.take<R>(layout.size) : nullptr;
  vec_ = every ? scratch.take<R>(layout.size) : nullptr;
}

template <class R, class N, class Call>
void InnerLoop<R, N, Call>::gradient(int64_t t, int64_t k) {
  if (call_.batch_per_step) load(pass(k), batch(t, k));
  network.forward(theta(k), pass(k));
  network.loss(targets(t, k), pass(k));
  network.backward(theta(k), pass(k), grad(k), nullptr);
}

template <class R, class N, class Call>
const R* InnerLoop<R, N, Call>::adapt(int64_t t) {
  loader_.load(network.layout, call_.params, t, theta(0));
  if (!call_.batch_per_step) {
    load(passes_[0], t);
    for (PassOf<R, N>& each : passes_) each.share_inputs(passes_[0]);
  }
  optimiser_.begin();
  for (int64_t k = 0; k < call_.steps; k++) {
    gradient(t, k);
    network.store_statistics(theta(k), pass(k), statistics ? statistics + k * of_batch : nullptr);
    if (optimiser_) optimiser_.forward(k, rates_, theta(k), grad(k), theta(k + 1));
    else rates_.descend(k, theta(k), grad(k), theta(k + 1));
    flip(network.layout, theta(k + 1));
  }
  return theta(call_.steps);
}

// v += H_k vec, and the same derivative to the examples.
template <class R, class N, class Call>
void InnerLoop<R, N, Call>::curve(int64_t t, int64_t k, const ExampleGrads<R>& grads) {
  const Targets<R> y = targets(t, k);
  flip(network.layout, vec_);
  network.curvature(theta(k), vec_, pass(k), y, R(0), v, grads.dx);
  const int64_t width = call_.shape.output_size();
  if (grads.dy) subtract_rows(network.output_tangents(), call_.support.count, width, network.layout.padded_outputs(), grads.dy);
  if (grads.dweights) network.add_weight_tangents(pass(k), y, grads.dweights);
}

template <class R, class N, class Call>
void InnerLoop<R, N, Call>::differentiate(int64_t t) {
  const int64_t n = call_.support.count;
  cleared(call_.shape, call_.support_grads, batch(t, 0) * n, batches(call_) * n);
  drates_.clear();
  optimiser_.begin_back();
  for (int64_t k = call_.steps - 1; k >= 0; k--) {
    if (second_order && !kept_ && k + 1 < call_.steps) gradient(t, k);
    if (optimiser_) optimiser_.back(k, rates_, theta(k), grad(k), v, vec_, drates_);
    else if (drates_.asked()) drates_.add(k, grad(k), v);
    if (!second_order) continue;
    if (!optimiser_) rates_.descend(k, nullptr, v, vec_);
    curve(t, k, grads_at(call_.shape, call_.support_grads, batch(t, k) * n));
  }
  drates_.store(t);
  store_block(network.layout, v, call_.dparams, t);
}

}  // namespace fastmeta::FASTMETA_ISA
