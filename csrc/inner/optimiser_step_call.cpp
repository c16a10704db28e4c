#include "inner/optimiser_step_call.h"

#include <cmath>

namespace fastmeta {

StepCall::StepCall(const char* op_, std::initializer_list<Handle> given, Handle lr, Handle learned) : op(op_) {
  static constexpr const char* kNames[] = {"params", "grads", "the state", "the state"};
  for (Handle list : given) lists.push_back(read_tensors(op, kNames[lists.size()], list));
  if (!read_list(op, "learned", learned).empty())
    throw py::value_error(std::string(op) + ": momentum, betas and weight_decay must be numbers");
  for (const auto& list : lists)
    if (list.size() != count()) throw py::value_error(std::string(op) + ": params, grads and the state must have the same length");
  read_rates(lr);
  for (size_t i = 0; i < count(); i++) check(i);
}

void StepCall::read_rates(Handle lr) {
  const std::vector<py::object> given = read_list(op, "lr", lr);
  if (given.size() != count() && given.size() != 1) throw py::value_error(std::string(op) + ": lr must have the length of params, or 1");
  for (const py::object& item : given) {
    rates.emplace_back();
    Rate& rate = rates.back();
    if (is_number(item)) rate.float64 = read_number(op, "lr", item);
    else rate.tensor = read_floating(op, "lr", item);
    rate.float32 = float(rate.float64);
    if (!std::isfinite(rate.float64)) refuse_not_finite(op, "lr", rate.float64);
    if (rate.tensor && !rate.tensor.dim()) require_finite(op, "lr", rate.tensor);  // the kernel looks at those of each element
  }
}

void StepCall::check(size_t i) const {
  const Tensor &grad = lists[1][i], &rate = this->rate(i).tensor;
  for (const auto& list : lists) {
    if (!list[i]) throw py::type_error(std::string(op) + ": params, grads and the state must be tensors, got None");
    require_cpu(op, {&list[i]});
    require_alike(op, {&lists[0][0], &list[i]});
  }
  const Shape &full = grad.shape(), core(full.begin() + !full.empty(), full.end());
  for (const auto& list : lists)
    if (list[i].shape() != core || full.empty()) require_shape(op, "a param or its state", list[i], full);
  if (!rate) return;
  require_cpu(op, {&rate});
  require_alike(op, {&grad, &rate});
  if (rate.dim() && rates.size() == 1 && count() > 1)
    throw py::value_error(std::string(op) + ": one lr for all must be a number or a 0-dim tensor");
  if (rate.dim() && rate.shape() != core) require_shape(op, "a rate", rate, full);
}

Spread StepCall::spread(const Tensor& x, const Tensor& grad, bool is_rate) const {
  if (is_rate && (!x || !x.dim())) return Spread::number;
  return x.dim() < grad.dim() ? Spread::shared : Spread::own;
}

int64_t StepCall::elements() const {
  int64_t total = 0;
  for (const Tensor& grad : lists[1]) total += grad.numel();
  return total;
}

}  // namespace fastmeta
