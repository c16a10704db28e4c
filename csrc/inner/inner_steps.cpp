#include "inner/inner_steps.h"

namespace fastmeta {

InnerSteps::InnerSteps(const char* op, Handle given, int64_t steps) {
  if (given.is_none()) return;
  const auto both = read_list(op, "inner", given, 2);
  if (both[0].cast<bool>()) lead = {steps};
  if (both[1].is_none()) return;
  const auto fields = read_list(op, "optimiser", both[1]);
  optimiser.emplace();
  const auto kind = read_choice(op, "optimiser", fields.at(0).cast<std::string>(), {"sgd", "adam", "adam_eps_hat"});
  optimiser->adam = kind > 0, optimiser->eps_hat = kind == 2;
  const auto number = [&](size_t i) { return read_number(op, "optimiser", fields.at(i)); };
  if (optimiser->adam) {
    optimiser->beta1 = number(1), optimiser->beta2 = number(2), optimiser->eps = number(3), optimiser->weight_decay = number(4);
  } else {
    optimiser->momentum = number(1), optimiser->weight_decay = number(2), optimiser->nesterov = fields.at(3).cast<bool>();
  }
}

}  // namespace fastmeta
