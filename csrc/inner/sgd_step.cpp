#include <cmath>

#include "runtime/arguments.h"
#include "runtime/cpu/kernels.h"
#include "ops.h"

namespace fastmeta {
namespace {

constexpr const char* kOp = "sgd_step";

// A rate as it came: a tensor, or a number in both dtypes for the kernels to point to.
struct Rate {
  Tensor tensor;
  double float64 = 0;
  float float32 = 0;

  template <class R>
  Stored<const R> stored() const {
    if (tensor) return tensor.stored<const R>();
    if constexpr (sizeof(R) == 8) return &float64;
    else return &float32;
  }
};

class Call {
 public:
  Call(Handle params_, Handle grads_, Handle lr_)
      : params(read_tensors(kOp, "params", params_, true)), grads(read_tensors(kOp, "grads", grads_, true)) {
    const std::vector<py::object> lr = read_list(kOp, "lr", lr_);
    if (grads.size() != params.size() || (lr.size() != params.size() && lr.size() != 1))
      throw py::value_error("sgd_step: params, grads and lr must have the same length, or lr the length 1");
    for (const py::object& item : lr) {
      rates.emplace_back();
      Rate& rate = rates.back();
      if (is_number(item)) rate.float64 = read_number(kOp, "lr", item);
      else rate.tensor = read_floating(kOp, "lr", item, true);
      rate.float32 = float(rate.float64);
      if (!std::isfinite(rate.float64)) refuse_not_finite(kOp, "lr", rate.float64);
      if (rate.tensor && !rate.tensor.dim()) require_finite(kOp, "lr", rate.tensor);  // the kernel looks at those of each element
    }
    for (size_t i = 0; i < params.size(); i++) check(params[i], grads[i], rate(i).tensor);
  }

  std::vector<Tensor> params, grads;
  std::vector<Rate> rates;

  size_t count() const { return params.size(); }
  size_t flat() const { return 2 * count() + rates.size(); }
  const Rate& rate(size_t i) const { return rates[rates.size() == 1 ? 0 : i]; }
  DType dtype() const { return params[0].dtype(); }
  bool shares_param(size_t i) const { return params[i].dim() < grads[i].dim(); }
  int64_t elements() const {
    int64_t total = 0;
    for (const Tensor& grad : grads) total += grad.numel();
    return total;
  }

  template <class R>
  typename SgdStep<R>::Item item(size_t i) const {
    typename SgdStep<R>::Item item{};
    const Tensor &rate_tensor = rate(i).tensor, &grad = grads[i];
    item.rate_kind = !rate_tensor || rate_tensor.dim() == 0 ? 0 : rate_tensor.dim() < grad.dim() ? 1 : 2;
    item.shared_param = shares_param(i);
    const bool by_task = item.shared_param || item.rate_kind == 1;
    item.tasks = by_task ? grad.size(0) : 1;
    item.size = 1;
    for (int64_t axis = by_task; axis < grad.dim(); axis++) item.size *= grad.size(axis);
    item.param = params[i].stored<const R>();
    item.grad = grad.stored<const R>();
    item.rate = rate(i).template stored<R>();
    return item;
  }

 private:
  void check(const Tensor& param, const Tensor& grad, const Tensor& rate) const {
    if (!param || !grad) throw py::type_error("sgd_step: params and grads must be tensors, got None");
    require_cpu(kOp, {&param, &grad, &rate});
    require_alike(kOp, {&params[0], &param, &grad, &rate});
    const Shape &full = grad.shape(), core(full.begin() + !full.empty(), full.end());
    if (param.shape() != core || full.empty()) require_shape(kOp, "a param", param, full);
    if (rate && rate.dim() && rates.size() == 1 && count() > 1)
      throw py::value_error("sgd_step: one lr for all must be a number or a 0-dim tensor");
    if (rate && rate.dim() && rate.shape() != core) require_shape(kOp, "a rate", rate, full);
  }
};

}  // namespace

py::tuple sgd_step_fwd(Handle params, Handle grads, Handle lr, Handle) {
  const Call call(params, grads, lr);
  if (!call.count()) return py::make_tuple(py::tuple(), py::tuple());
  std::vector<Tensor> outs;
  for (const Tensor& grad : call.grads) outs.push_back(grad.empty(grad.shape()));
  by_dtype(call.dtype(), [&](auto zero) {
    using R = decltype(zero);
    std::vector<typename SgdStep<R>::Item> items;
    for (size_t i = 0; i < call.count(); i++) {
      items.push_back(call.item<R>(i));
      items[i].out = outs[i].stored<R>();
    }
    bool not_finite = false;
    const SgdStep<R> step{int64_t(items.size()), items.data(), false, &not_finite};
    run_kernel(call.elements(), [&] { cpu<R>().sgd_step_fwd(step); });
    for (const Rate& rate : call.rates) {
      if (not_finite && rate.tensor) require_finite(kOp, "lr", rate.tensor);
    }
  });
  return py::make_tuple(pack(outs), py::tuple());
}

py::tuple sgd_step_bwd(Handle cotangents, Handle, Handle params, Handle grads, Handle lr, Handle needs_) {
  const Call call(params, grads, lr);
  const std::vector<bool> needs = read_needs(kOp, needs_, call.flat());
  const size_t count = call.count();
  const std::vector<py::object> objects = read_list(kOp, "cotangents", cotangents, count);
  const std::vector<Tensor> douts = read_tensors(kOp, "cotangents", cotangents, true);
  std::vector<Tensor> made(call.flat());  // dparams of shared params, dgrads, drates
  bool work = false;
  for (size_t i = 0; i < count; i++) {
    require_shape(kOp, "a cotangent", douts[i], call.grads[i].shape());
    require_alike(kOp, {&call.params[i], &douts[i]});
    require_cpu(kOp, {&douts[i]});
    if (needs[i] && call.shares_param(i)) made[i] = douts[i].empty(call.params[i].shape());
    if (needs[count + i]) made[count + i] = douts[i].empty(call.grads[i].shape());
    if (i < call.rates.size() && needs[2 * count + i] && call.rates[i].tensor)
      made[2 * count + i] = douts[i].empty(call.rates[i].tensor.shape());
  }
  for (const Tensor& gradient : made) work |= bool(gradient);
  if (work)
    by_dtype(call.dtype(), [&](auto zero) {
      using R = decltype(zero);
      std::vector<typename SgdStep<R>::Item> items;
      for (size_t i = 0; i < count; i++) {
        items.push_back(call.item<R>(i));
        items[i].dout = douts[i].stored<const R>();
        items[i].dparam = made[i].stored<R>();
        items[i].dgrad = made[count + i].stored<R>();
        items[i].drate = i < call.rates.size() ? made[2 * count + i].stored<R>() : Stored<R>();
      }
      const SgdStep<R> step{int64_t(count), items.data(), call.rates.size() == 1 && items[0].rate_kind == 0};
      run_kernel(call.elements(), [&] { cpu<R>().sgd_step_bwd(step); });
    });
  py::list gradients;
  for (size_t i = 0; i < made.size(); i++) {
    if (!needs[i]) continue;
    if (made[i]) gradients.append(made[i].object());
    else gradients.append(i < count ? objects[i] : py::none());  // dparam = dout; a number has no gradient
  }
  return py::tuple(gradients);
}

}  // namespace fastmeta
