// The optimiser of an inner loop in the place of theta - alpha g: its state at every step, in blocks of gradients, and its step forward
// and back.
#pragma once
#include <vector>

#include "inner/cpu/inner_rates.h"

namespace fastmeta::FASTMETA_ISA {

// `count` numbers of blocks. in: theta, gradient, state, rate; out: theta, state. `one`: the rate is one number.
template <class R>
struct OptimiserSpan {
  const R* in[kMostIn];
  bool one;
  int64_t count;
  R* out[kMostOut];         // of forward
  const R* dout[kMostOut];  // of backward
  R* din[kMostIn];
};
// Step number `step`, the first being 1.
template <class R>
void optimise(const InnerOptimiser& optimiser, int64_t step, const OptimiserSpan<R>& span);
template <class R>
void optimise_back(const InnerOptimiser& optimiser, int64_t step, const OptimiserSpan<R>& span);

// Of one task at a time; all functions but the constructor only where there is an optimiser.
template <class R, class N>
class OptimiserSteps {
 public:
  OptimiserSteps(const LayoutOf<R, N>& layout, const InnerOptimiser* optimiser, int64_t steps, bool backward, Scratch& scratch)
      : layout_(layout),
        optimiser_(optimiser),
        kinds_(!optimiser        ? 0
               : optimiser->adam ? 2
                                 : 1) {
    for (int64_t i = 0; i < kinds_ * (backward ? steps + 1 : 1); i++) states_.push_back(scratch.take<R>(layout.gradient));
    for (int i = 0; backward && i < kinds_; i++) dstate_.push_back(scratch.take<R>(layout.gradient));
    drate_ = backward && optimiser ? scratch.take<R>(layout.gradient) : nullptr;
  }

  explicit operator bool() const { return optimiser_; }

  void begin() {
    for (int i = 0; i < kinds_; i++) clear(state(0, i));
  }
  void forward(int64_t k, const InnerRates<R, N>& rates, const R* theta, const R* grad, R* next) {
    each(k, rates, theta, grad, [&](OptimiserSpan<R>& span, int64_t begin) {
      span.out[0] = next + begin;
      for (int i = 0; i < kinds_; i++) span.out[1 + i] = state(k + 1, i) + begin;
      optimise(*optimiser_, k + 1, span);
    });
  }

  void begin_back() {
    for (R* d : dstate_) clear(d);
  }
  // v = dL/dtheta_{k+1} becomes that to theta_k but for what goes through the gradient, and dgrad the one to that.
  void back(int64_t k, const InnerRates<R, N>& rates, const R* theta, const R* grad, R* v, R* dgrad, RateGradients<R, N>& drates) {
    each(k, rates, theta, grad, [&](OptimiserSpan<R>& span, int64_t begin) {
      span.dout[0] = span.din[0] = v + begin, span.din[1] = dgrad + begin;
      for (int i = 0; i < kinds_; i++) span.dout[1 + i] = span.din[2 + i] = dstate_[size_t(i)] + begin;
      span.din[2 + kinds_] = drate_ + begin;
      optimise_back(*optimiser_, k + 1, span);
    });
    if (drates.asked()) drates.add(k, drate_);
  }

 private:
  R* state(int64_t k, int i) const { return states_[size_t((int64_t(states_.size()) > kinds_ ? k : 0) * kinds_ + i)]; }
  void clear(R* block) const { std::memset(block, 0, size_t(layout_.gradient) * sizeof(R)); }

  // Calls f(span, begin) for the spans of a block, their inputs in place.
  template <class F>
  void each(int64_t k, const InnerRates<R, N>& rates, const R* theta, const R* grad, F&& f) {
    rates.for_each_span(k, [&](int64_t begin, int64_t count, const R* rate, bool one) {
      OptimiserSpan<R> span{{theta + begin, grad + begin}, one, count};
      for (int i = 0; i < kinds_; i++) span.in[2 + i] = state(k, i) + begin;
      span.in[2 + kinds_] = rate;
      f(span, begin);
    });
  }

  const LayoutOf<R, N>& layout_;
  const InnerOptimiser* optimiser_;
  int kinds_;                        // of state
  std::vector<R*> states_, dstate_;  // before each step and after the last, or one in the place of all
  R* drate_;                         // of each element, of one step
};

}  // namespace fastmeta::FASTMETA_ISA
