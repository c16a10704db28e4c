#include "mlp_arguments.h"

#include <cmath>

namespace fastmeta {
namespace {

int64_t product(const std::vector<int64_t>& shape) {
  int64_t total = 1;
  for (int64_t size : shape) total *= size;
  return total;
}

struct RateKind {
  bool per_element = false, per_step = false;
};

// Of a rate for all parameters, () or [steps], or for the first weight: (), [steps], [out, in] or [steps, out, in].
RateKind rate_kind(const Tensor& rate) { return {rate.dim() > 1, rate.dim() % 2 == 1}; }

}  // namespace

MlpCall::MlpCall(const char* op_, Handle params_, Handle inputs_, Str activation, Str loss)
    : op(op_), inputs(read_floating(op_, "inputs", inputs_)), batched(inputs.dim() == 3) {
  const auto list = read_list(op, "params", params_);
  const size_t layers = list.size() / 2;
  if (list.size() % 2 || layers < 1 || layers > size_t(kMaxLayers))
    throw py::value_error(std::string(op) + ": params must hold a weight and a bias for 1 to 8 layers");
  if (inputs.dim() != 2 && inputs.dim() != 3) throw py::value_error(std::string(op) + ": inputs must be [n, in] or [T, n, in]");
  shape.tasks = batched ? inputs.size(0) : 1;
  shape.layers = int(layers);
  shape.activation = read_enum<Activation>(op, "activation", activation, {"relu", "tanh", "gelu", "sigmoid", "identity"});
  shape.loss = read_enum<Loss>(op, "loss", loss, {"cross_entropy", "mse"});
  shape.tf32 = inputs.dtype() == DType::float32 && (inputs.on_cuda() || cpu<float>().mlp_tf32) && allows_tf32();
  shape.width[0] = inputs.size(-1);
  for (size_t i = 0; i < list.size(); i++) {
    const Tensor p = read_floating_or_none(op, "params", list[i]);
    const int rank = i % 2 ? 1 : 2;
    if (i % 2 == 0) {
      if (!p || p.dim() < 2) throw py::value_error(std::string(op) + ": params must hold weights [T, out, in] or [out, in]");
      shape.width[i / 2 + 1] = p.size(-2);
      if (p.size(-2) < 1) throw py::value_error(std::string(op) + ": params must have weights with at least one output");
    }
    if (p) {
      const auto expected = core(int(i));
      require_shape(op, "params", p, fastmeta::with_tasks(batched && p.dim() > rank, shape.tasks, expected));
      require_alike(op, {&inputs, &p});
    }
    params.push_back(p);
  }
}

std::vector<int64_t> MlpCall::core(int tensor) const {
  const int64_t out = shape.width[tensor / 2 + 1];
  if (tensor % 2) return {out};
  return {out, shape.width[tensor / 2]};
}

std::vector<int64_t> MlpCall::with_tasks(std::vector<int64_t> core) const { return fastmeta::with_tasks(batched, shape.tasks, core); }

Tensors MlpCall::like_params(Handle list, const char* name) const {
  const auto items = read_list(op, name, list, params.size());
  Tensors found;
  for (size_t i = 0; i < items.size(); i++) {
    const Tensor item = read_floating_or_none(op, name, items[i]);
    if (bool(item) != bool(params[i])) throw py::value_error(std::string(op) + ": " + name + " must have a tensor where params has one");
    if (item) {
      require_shape(op, name, item, with_tasks(core(int(i))));
      require_alike(op, {&inputs, &item});
    }
    found.push_back(item);
  }
  return found;
}

Tensor MlpCall::rate(py::handle item, const Shape& expected, bool values) const {
  if (!is_number(item)) {
    Tensor found = read_floating(op, "rates", item);
    require_shape(op, "rates", found, expected);
    require_alike(op, {&inputs, &found});
    if (values) require_finite(op, "lr", found);
    return found;
  }
  const double value = read_number(op, "lr", item);
  if (!std::isfinite(value)) refuse_not_finite(op, "lr", value);
  require_shape(op, "rates", Tensor(), expected);
  if (inputs.on_cuda() && values) return Tensor(op, inputs.object().attr("new_full")(py::tuple(), value), "rates");
  Tensor made = inputs.empty({});
  if (values) by_dtype(made.dtype(), [&](auto zero) { *made.data<decltype(zero)>() = decltype(zero)(value); });
  return made;
}

Tensors MlpCall::rates(Handle list, int64_t steps, bool values) const {
  const auto items = read_list(op, "rates", list);
  if (items.size() != 1 && items.size() != params.size())
    throw py::value_error(std::string(op) + ": rates must be one, or one for each of params");
  if (steps < 0) throw py::value_error(std::string(op) + ": steps must be at least 0, got " + std::to_string(steps));
  const RateKind kind = is_number(items[0]) ? RateKind{} : rate_kind(read_floating(op, "rates", items[0]));
  if (items.size() == 1 && kind.per_element) throw py::value_error(std::string(op) + ": one rate for all must have shape [] or [steps]");
  Tensors found;
  for (size_t i = 0; i < items.size(); i++) {
    if (items.size() > 1 && items[i].is_none() == bool(params[i]))
      throw py::value_error(std::string(op) + ": rates must have a tensor where params has one");
    found.push_back(items[i].is_none()
                        ? Tensor()
                        : rate(items[i], fastmeta::with_tasks(kind.per_step, steps, kind.per_element ? core(int(i)) : Shape{}), values));
  }
  return found;
}

Tensor MlpCall::examples(Handle x, const char* name) const {
  Tensor found = read_floating(op, name, x);
  require_alike(op, {&inputs, &found});
  require_shape(op, name, found, with_tasks({found.dim() > 1 ? found.size(-2) : 0, shape.width[0]}));
  return found;
}

Tensor MlpCall::targets(Handle y, const char* name, int64_t count) const {
  Tensor found(op, y, name);
  const bool classes = shape.loss == Loss::cross_entropy;
  if (classes != (found.dtype() == DType::int64)) throw py::type_error(std::string(op) + ": " + name + " must suit the loss");
  require_alike(op, {&inputs, &found});
  require_shape(op, name, found, classes ? with_tasks({count}) : with_tasks({count, out()}));
  return found;
}

Tensors MlpCall::empty_params() const {
  Tensors made;
  for (size_t i = 0; i < params.size(); i++) made.push_back(params[i] ? inputs.empty(with_tasks(core(int(i)))) : Tensor());
  return made;
}

template <class R>
MlpParams<R> pointers(const MlpCall& call, const Tensors& tensors) {
  MlpParams<R> found;
  for (size_t i = 0; i < tensors.size(); i++) {
    if (!tensors[i]) continue;
    const auto core = call.core(int(i));
    const int64_t stride = call.batched && tensors[i].dim() > int64_t(core.size()) ? product(core) : 0;
    (i % 2 ? found.bias[i / 2] : found.weight[i / 2]) = tensors[i].data<R>();
    (i % 2 ? found.bias_stride[i / 2] : found.weight_stride[i / 2]) = stride;
  }
  return found;
}

template <class R>
MlpRates<R> rate_pointers(const Tensors& rates) {
  MlpRates<R> found;
  const RateKind kind = rate_kind(rates[0]);
  found.shared = rates.size() == 1, found.per_element = kind.per_element, found.per_step = kind.per_step;
  for (size_t i = 0; i < rates.size(); i++) found.value[i] = rates[i].data<R>();
  return found;
}

template <class R>
MlpRates<R> drate_pointers(const Tensors& rates, const Tensors& drates) {
  MlpRates<R> found = rate_pointers<R>(rates);
  for (size_t i = 0; i < drates.size(); i++) found.value[i] = drates[i].data<R>();
  return found;
}

Gradients::Gradients(const MlpCall& call, Handle needs, Tensors rates) : call_(call), rates_(std::move(rates)), needs_(read_needs(needs)) {
  for (size_t i = 0; call_.inputs.on_cpu() && i < needs_.size(); i++)
    if (needs_[i] && is_summed(i)) total_ += call_.shape.tasks * product(core(i));
}

Shape Gradients::core(size_t i) const {
  const size_t params = call_.params.size();
  return i < params ? call_.core(int(i)) : rates_[i - params].shape();
}

bool Gradients::is_summed(size_t i) const {
  const size_t params = call_.params.size();
  if (!call_.batched || i >= params + rates_.size()) return false;
  return i >= params || call_.params[i].dim() == int64_t(core(i).size());
}

Tensor Gradients::next(const Shape& core) {
  const size_t i = next_++;
  if (!needs_.at(i)) return Tensor();
  const Shape shape = call_.with_tasks(core);
  if (!is_together(i)) {
    made_.push_back(call_.inputs.empty(shape));
    return made_.back();
  }
  if (!together_) together_ = call_.inputs.empty({total_});
  used_ += product(shape);
  return together_.part(used_ - product(shape), shape);
}

py::tuple Gradients::made() const {
  Tensors all = made_;
  all.insert(all.begin(), together_);
  return pack(all);
}

Tensors Gradients::for_params() {
  Tensors found;
  for (size_t i = 0; i < call_.params.size(); i++) found.push_back(next(call_.core(int(i))));
  return found;
}

Tensors Gradients::for_rates() {
  Tensors found;
  for (const Tensor& rate : rates_) found.push_back(next(rate.shape()));
  return found;
}

Tensor Gradients::for_examples(const Tensor& x) { return next(Shape(x.shape().begin() + (call_.batched ? 1 : 0), x.shape().end())); }

py::tuple Gradients::finish(Handle made, const Tensor& dloss) const {
  const auto items = read_list(call_.op, "saved", made);
  Tensor together;
  size_t item = 0;
  if (total_) {
    together = Tensor(call_.op, items.at(item++), "saved");
    require_alike(call_.op, {&call_.inputs, &together});
    require_shape(call_.op, "saved", together, {total_});
  }
  Tensors gradients;
  std::vector<bool> summed;
  int64_t used = 0;
  for (size_t i = 0; i < needs_.size(); i++) {
    if (!needs_[i]) continue;
    Tensor gradient;
    if (is_together(i)) {
      const Shape shape = call_.with_tasks(core(i));
      gradient = together.part(used, shape);
      used += product(shape);
    } else {
      gradient = Tensor(call_.op, items.at(item++), "saved");
    }
    gradients.push_back(gradient), summed.push_back(is_summed(i));
  }
  return of_tasks(call_.op, gradients, summed, call_.shape.tasks, dloss);
}

Tensor loss_cotangent(const MlpCall& call, Handle cotangents) {
  Tensor dloss = read_floating(call.op, "cotangent", py::tuple(py::reinterpret_borrow<py::object>(cotangents))[0]);
  require_shape(call.op, "cotangent", dloss, call.with_tasks({}));
  require_alike(call.op, {&call.inputs, &dloss});
  return dloss;
}

template <class Args>
void launch(const MlpCall& call, const Args& args, Kernel<Args> kernel) {
  if (!call.inputs.on_cuda()) {
    py::gil_scoped_release release;
    return kernel.on_cpu(args);
  }
  if (!kernel.on_cuda) throw std::runtime_error(std::string(call.op) + ": the extension must be built with CUDA, got CUDA tensors");
#ifdef FASTMETA_CUDA
  if (!call.shape.tasks) return;
  cuda::DeviceGuard guard(call.inputs.device_index());
  Tensor memory = call.inputs.empty({(kernel.workspace(args) + 7) / 8 * (8 / call.inputs.item_size())});
  const char* error = kernel.on_cuda(args, memory.data<void>(), current_stream(call.inputs));
  require_launched(call.op, error);
#endif
}

#define INSTANTIATE_TYPE(R)                                                      \
  template MlpParams<R> pointers<R>(const MlpCall&, const Tensors&);             \
  template MlpParams<const R> pointers<const R>(const MlpCall&, const Tensors&); \
  template MlpRates<R> rate_pointers<R>(const Tensors&);                         \
  template MlpRates<const R> rate_pointers<const R>(const Tensors&);             \
  template MlpRates<R> drate_pointers<R>(const Tensors&, const Tensors&);
#define INSTANTIATE_LAUNCH(ARGS) template void launch<ARGS>(const MlpCall&, const ARGS&, Kernel<ARGS>);
#define INSTANTIATE_ALL(R)            \
  INSTANTIATE_TYPE(R)                 \
  INSTANTIATE_LAUNCH(MlpForward<R>)   \
  INSTANTIATE_LAUNCH(MlpLoss<R>)      \
  INSTANTIATE_LAUNCH(MlpCurvature<R>) \
  INSTANTIATE_LAUNCH(MlpAdapt<R>)     \
  INSTANTIATE_LAUNCH(MlpMetaLoss<R>)
INSTANTIATE_ALL(float)
INSTANTIATE_ALL(double)

}  // namespace fastmeta
