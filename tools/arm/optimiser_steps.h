// The problems of momentum_step and adam_step.
#pragma once
#include "arm/saved.h"
#include "runtime/cpu/kernels.h"

namespace fastmeta {

template <class R>
using StepKernel = void (*)(const OptimiserStep<R>&);

template <class R>
void optimiser_step(Saved& s, int state, StepKernel<R> forward, StepKernel<R> backward) {
  typename OptimiserStep<R>::Item item{};
  OptimiserStep<R> step{};
  bool not_finite = false;
  for (double* number : {&step.weight_decay, &step.momentum, &step.beta1, &step.beta2, &step.eps, &step.correction1, &step.correction2})
    *number = s.number();
  step.nesterov = s.integer(), item.tasks = s.integer(), item.size = s.integer();
  for (int k = 0; k < 3 + state; k++) item.spread[k] = Spread(s.integer()), item.in[k] = s.array<R>();
  for (int k = 0; k < 1 + state; k++) item.dout[k] = s.array<R>();
  for (int k = 0; k < 1 + state; k++) item.out[k] = s.result<R>();
  for (int k = 0; k < 3 + state; k++) item.din[k] = s.result<R>();
  step.count = 1, step.items = &item, step.one_rate = item.spread[2 + state] == Spread::number, step.not_finite = &not_finite;
  forward(step);
  backward(step);
}

template <class R>
void momentum_step(Saved& s) {
  optimiser_step<R>(s, 1, cpu<R>().momentum_step_fwd, cpu<R>().momentum_step_bwd);
}

template <class R>
void adam_step(Saved& s) {
  optimiser_step<R>(s, 2, cpu<R>().adam_step_fwd, cpu<R>().adam_step_bwd);
}

}  // namespace fastmeta
