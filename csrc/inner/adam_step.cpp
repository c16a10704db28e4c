#include <cmath>

#include "inner/optimiser_step_call.h"

namespace fastmeta {
namespace {

constexpr const char* kOp = "adam_step";

// Puts the numbers into what a kernel is told.
auto numbers(const StepCall& call, Handle count, Handle beta1, Handle beta2, Handle weight_decay, Handle eps) {
  const double k = call.number("step", count), b1 = read_number(kOp, "beta1", beta1), b2 = read_number(kOp, "beta2", beta2);
  return [=, decay = read_number(kOp, "weight_decay", weight_decay), eps = read_number(kOp, "eps", eps)](auto& step) {
    step.beta1 = b1, step.beta2 = b2, step.weight_decay = decay, step.eps = eps;
    step.correction1 = 1 - std::pow(b1, k), step.correction2 = 1 - std::pow(b2, k);
  };
}

}  // namespace

py::tuple adam_step_fwd(Handle params, Handle grads, Handle means, Handle squares, Handle lr, Handle step, Handle learned, Handle beta1,
                        Handle beta2, Handle weight_decay, Handle eps, Handle) {
  const StepCall call(kOp, {params, grads, means, squares}, lr, learned);
  return call.forward(numbers(call, step, beta1, beta2, weight_decay, eps), [](auto& it) { kernels_for(it).adam_step_fwd(it); });
}

py::tuple adam_step_bwd(Handle cotangents, Handle, Handle params, Handle grads, Handle means, Handle squares, Handle lr, Handle step,
                        Handle learned, Handle beta1, Handle beta2, Handle weight_decay, Handle eps, Handle needs) {
  const StepCall call(kOp, {params, grads, means, squares}, lr, learned);
  return call.backward(cotangents, needs, numbers(call, step, beta1, beta2, weight_decay, eps),
                       [](auto& it) { kernels_for(it).adam_step_bwd(it); });
}

}  // namespace fastmeta
