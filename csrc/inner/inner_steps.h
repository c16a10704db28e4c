// The steps of an inner loop as the ops of networks are told them.
#pragma once
#include <optional>

#include "inner/conv_call.h"
#include "inner/mlp_call.h"

namespace fastmeta {

// What the steps of an inner loop are beyond theta - alpha g on the same batch. Read from None, or (whether each has a batch of its own,
// an optimiser or None): ("sgd", momentum, weight_decay, nesterov) or ("adam" or "adam_eps_hat", beta1, beta2, eps, weight_decay).
struct InnerSteps {
  InnerSteps(const char* op, Handle given, int64_t steps);

  Shape lead;  // of the support after the tasks: the steps, where each has a batch of its own
  std::optional<InnerOptimiser> optimiser;

  bool plain() const { return lead.empty() && !optimiser; }
  template <class Args>
  void set(Args& args) const {
    args.batch_per_step = !lead.empty();
    args.optimiser = optimiser ? &*optimiser : nullptr;
  }
};

// ValueError where the kernels do not take such steps.
inline void require_taken(const NetworkCall& call, const InnerSteps& how) {
  if (!how.plain() && call.by_cuda())
    throw py::value_error(std::string(call.op) + ": a batch for each step and an optimiser must run on a CPU");
}

}  // namespace fastmeta
