#include "inner/optimiser_step_call.h"

namespace fastmeta {
namespace {

constexpr const char* kOp = "momentum_step";

// Puts the numbers into what a kernel is told.
auto numbers(Handle momentum, Handle weight_decay, bool nesterov) {
  return [=, mu = read_number(kOp, "momentum", momentum), decay = read_number(kOp, "weight_decay", weight_decay)](auto& step) {
    step.momentum = mu, step.weight_decay = decay, step.nesterov = nesterov;
  };
}

}  // namespace

py::tuple momentum_step_fwd(Handle params, Handle grads, Handle velocities, Handle lr, Handle learned, Handle momentum, Handle weight_decay,
                            bool nesterov, Handle) {
  const StepCall call(kOp, {params, grads, velocities}, lr, learned);
  return call.forward(numbers(momentum, weight_decay, nesterov), [](auto& step) { kernels_for(step).momentum_step_fwd(step); });
}

py::tuple momentum_step_bwd(Handle cotangents, Handle, Handle params, Handle grads, Handle velocities, Handle lr, Handle learned,
                            Handle momentum, Handle weight_decay, bool nesterov, Handle needs) {
  const StepCall call(kOp, {params, grads, velocities}, lr, learned);
  return call.backward(cotangents, needs, numbers(momentum, weight_decay, nesterov),
                       [](auto& step) { kernels_for(step).momentum_step_bwd(step); });
}

}  // namespace fastmeta
