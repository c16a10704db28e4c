// The call of an optimiser's step: its lists read and checked, run, and packed.
#pragma once
#include "inner/optimiser_step.h"
#include "ops.h"
#include "runtime/arguments.h"
#include "runtime/cpu/kernels.h"

namespace fastmeta {

class StepCall {
 public:
  // `lists`: params, grads, then the state.
  StepCall(const char* op, std::initializer_list<Handle> lists, Handle lr, Handle learned);

  // kernel(OptimiserStep<R>), into which `numbers` has put the op's own.
  template <class Numbers, class Kernel>
  py::tuple forward(const Numbers& numbers, const Kernel& kernel) const;
  template <class Numbers, class Kernel>
  py::tuple backward(Handle cotangents, Handle needs, const Numbers& numbers, const Kernel& kernel) const;

  size_t count() const { return lists[0].size(); }
  double number(const char* name, Handle object) const {  // or a tensor of the params' dtype
    return count() ? read_number(op, name, object, lists[0][0]) : 0;
  }

 private:
  struct Rate {  // a tensor, or a number in both dtypes for the kernels to point to
    Tensor tensor;
    double float64 = 0;
    float float32 = 0;
    template <class R>
    const R* data() const {
      if (tensor) return tensor.data<R>();
      if constexpr (sizeof(R) == 8) return &float64;
      else return &float32;
    }
  };

  const char* op;
  std::vector<std::vector<Tensor>> lists;
  std::vector<Rate> rates;

  const Rate& rate(size_t i) const { return rates[rates.size() == 1 ? 0 : i]; }
  size_t outputs() const { return lists.size() - 1; }
  int64_t elements() const;
  void read_rates(Handle lr);
  void check(size_t i) const;
  Spread spread(const Tensor& x, const Tensor& grad, bool is_rate) const;
  template <class R>
  typename OptimiserStep<R>::Item item(size_t i) const;
};

template <class R>
typename OptimiserStep<R>::Item StepCall::item(size_t i) const {
  typename OptimiserStep<R>::Item item{};
  const Tensor& grad = lists[1][i];
  bool by_task = false;
  for (size_t k = 0; k <= lists.size(); k++) {
    const bool is_rate = k == lists.size();
    item.spread[k] = spread(is_rate ? rate(i).tensor : lists[k][i], grad, is_rate);
    item.in[k] = is_rate ? rate(i).template data<R>() : lists[k][i].data<R>();
    by_task |= item.spread[k] == Spread::shared;
  }
  item.tasks = by_task ? grad.size(0) : 1;
  item.size = 1;
  for (int64_t axis = by_task; axis < grad.dim(); axis++) item.size *= grad.size(axis);
  return item;
}

template <class R>
const CpuKernels<R>& kernels_for(const OptimiserStep<R>&) {
  return cpu<R>();
}

template <class Numbers, class Kernel>
py::tuple StepCall::forward(const Numbers& numbers, const Kernel& kernel) const {
  std::vector<Tensor> outs;
  for (size_t k = 0; k < outputs(); k++)
    for (const Tensor& grad : lists[1]) outs.push_back(grad.empty(grad.shape()));
  if (!count()) return py::make_tuple(py::tuple(), py::tuple());
  by_dtype(lists[0][0].dtype(), [&](auto zero) {
    using R = decltype(zero);
    std::vector<typename OptimiserStep<R>::Item> items;
    for (size_t i = 0; i < count(); i++) {
      items.push_back(item<R>(i));
      for (size_t k = 0; k < outputs(); k++) items[i].out[k] = outs[k * count() + i].template data<R>();
    }
    bool not_finite = false;
    OptimiserStep<R> step{};
    step.count = int64_t(count()), step.items = items.data(), step.not_finite = &not_finite;
    numbers(step);
    run_kernel(elements(), [&] { kernel(step); });
    for (const Rate& rate : rates)
      if (not_finite && rate.tensor) require_finite(op, "lr", rate.tensor);
  });
  return py::make_tuple(pack(outs), py::tuple());
}

template <class Numbers, class Kernel>
py::tuple StepCall::backward(Handle cotangents, Handle needs_, const Numbers& numbers, const Kernel& kernel) const {
  const size_t n = count(), of_lists = lists.size() * n;
  const std::vector<bool> needs = read_needs(needs_);
  read_list(op, "cotangents", cotangents, outputs() * n);
  const std::vector<Tensor> douts = read_tensors(op, "cotangents", cotangents);
  if (needs.size() < of_lists + rates.size()) throw py::value_error(std::string(op) + ": needs must have one for each input");
  std::vector<Tensor> made(needs.size());
  for (size_t j = 0; j < douts.size(); j++) {
    require_shape(op, "a cotangent", douts[j], lists[1][j % n].shape());
    require_alike(op, {&lists[0][0], &douts[j]});
    require_cpu(op, {&douts[j]});
  }
  for (size_t j = 0; j < of_lists + rates.size(); j++) {
    const Tensor& like = j < of_lists ? lists[j / n][j % n] : rates[j - of_lists].tensor;
    if (needs[j] && like) made[j] = like.empty(like.shape());
  }
  if (n)
    by_dtype(lists[0][0].dtype(), [&](auto zero) {
      using R = decltype(zero);
      std::vector<typename OptimiserStep<R>::Item> items;
      for (size_t i = 0; i < n; i++) {
        items.push_back(item<R>(i));
        for (size_t k = 0; k < outputs(); k++) items[i].dout[k] = douts[k * n + i].template data<R>();
        for (size_t k = 0; k < lists.size(); k++) items[i].din[k] = made[k * n + i].template data<R>();
        items[i].din[lists.size()] = i < rates.size() ? made[of_lists + i].template data<R>() : nullptr;
      }
      OptimiserStep<R> step{};
      step.count = int64_t(n), step.items = items.data();
      step.one_rate = rates.size() == 1 && items[0].spread[lists.size()] == Spread::number;
      numbers(step);
      run_kernel(elements(), [&] { kernel(step); });
    });
  py::list gradients;
  for (size_t j = 0; j < made.size(); j++)
    if (needs[j]) gradients.append(made[j] ? made[j].object() : py::none());
  return py::tuple(gradients);
}

}  // namespace fastmeta
