#include "inner/network_call.h"

#include <cmath>

#include "runtime/cpu/kernels.h"

namespace fastmeta {
namespace {

int64_t product(const Shape& shape) {
  int64_t total = 1;
  for (int64_t size : shape) total *= size;
  return total;
}

}  // namespace

NetworkCall::NetworkCall(const char* op_, Handle inputs_, int64_t example_rank, Str loss_, const Shape& lead_)
    : op(op_),
      loss(read_enum<Loss>(op_, "loss", loss_, {"cross_entropy", "mse"})),
      inputs(read_floating(op_, "inputs", inputs_, true)),
      batched(require_rank(op_, "inputs", inputs, example_rank + 1 + int64_t(lead_.size()))),
      tasks(batched ? inputs.size(0) : 1),
      example(inputs.shape().end() - example_rank, inputs.shape().end()),
      lead(lead_) {
  if (inputs.narrow() && !inputs.on_cpu()) read_floating(op, "inputs", inputs_);  // which refuses
  if (!lead.empty() && inputs.size(batched) != lead[0])
    throw py::value_error(std::string(op) + ": inputs must have a batch for each of " + std::to_string(lead[0]) + " steps, got " +
                          std::to_string(inputs.size(batched)));
}

bool NetworkCall::by_cuda() const { return inputs.on_cuda() || cpu<float>().emulates_cuda; }

void NetworkCall::add_param(const Tensor& p, bool turned) {
  if (p) {
    Shape expected = core(int(params.size()));
    if (turned) std::swap(expected[0], expected[1]);
    require_shape(op, "params", p, fastmeta::with_tasks(batched && p.dim() > int64_t(expected.size()), tasks, expected));
    require_alike(op, {&inputs, &p});
  }
  params.push_back(p);
}

Tensors NetworkCall::like_params(Handle list, const char* name) const {
  const auto items = read_list(op, name, list, params.size());
  Tensors found;
  for (size_t i = 0; i < items.size(); i++) {
    const Tensor item = read_floating_or_none(op, name, items[i], inputs.narrow());
    if (bool(item) != bool(params[i])) throw py::value_error(std::string(op) + ": " + name + " must have a tensor where params has one");
    if (item) {
      require_shape(op, name, item, with_tasks(core(int(i))));
      require_alike(op, {&inputs, &item});
    }
    found.push_back(item);
  }
  return found;
}

Tensors NetworkCall::cotangents_of_params(Handle cotangents, size_t first) const {
  const py::tuple given(py::reinterpret_borrow<py::object>(cotangents));
  py::list found;
  for (const Tensor& p : params) found.append(p ? py::object(given[first++]) : py::none());
  return like_params(found, "cotangents");
}

Tensor NetworkCall::rate(Handle item, const Shape& expected) const {
  if (is_number(item)) {
    require_shape(op, "rates", Tensor(), expected);
    return Tensor();
  }
  const Tensor found = read_floating(op, "rates", item, inputs.narrow());
  require_shape(op, "rates", found, expected);
  require_alike(op, {&inputs, &found});
  require_finite(op, "lr", found);
  return widened(found);
}

RateList NetworkCall::rates(Handle list, int64_t steps) const {
  const auto items = read_list(op, "rates", list);
  if (items.size() != 1 && items.size() != params.size())
    throw py::value_error(std::string(op) + ": rates must be one, or one for each of params");
  if (steps < 0) throw py::value_error(std::string(op) + ": steps must be at least 0, got " + std::to_string(steps));
  // The first tells the kind: (), [steps], the first weight's shape, whose rank is even, or [steps, *shape].
  const int64_t rank = is_number(items[0]) ? 0 : read_floating(op, "rates", items[0], inputs.narrow()).dim();
  const bool per_element = rank > 1, per_step = rank % 2 == 1;
  if (items.size() == 1 && per_element) throw py::value_error(std::string(op) + ": one rate for all must have shape [] or [steps]");
  RateList found;
  for (size_t i = 0; i < items.size(); i++) {
    if (items.size() > 1 && items[i].is_none() == bool(params[i]))
      throw py::value_error(std::string(op) + ": rates must have a tensor where params has one");
    const double number = is_number(items[i]) ? read_number(op, "lr", items[i]) : 0;
    if (!std::isfinite(number)) refuse_not_finite(op, "lr", number);
    found.numbers.push_back(number);
    found.tensors.push_back(
        items[i].is_none() ? Tensor() : rate(items[i], fastmeta::with_tasks(per_step, steps, per_element ? core(int(i)) : Shape{})));
  }
  return found;
}

Tensor NetworkCall::examples(Handle x, const char* name) const {
  Tensor found = read_floating(op, name, x, inputs.narrow());
  require_alike(op, {&inputs, &found});
  Shape expected = example;
  expected.insert(expected.begin(), found.dim() > int64_t(example.size()) ? count_of(found) : 0);
  require_shape(op, name, found, with_tasks(expected));
  require_examples(count_of(found));
  return found;
}

TargetTensors NetworkCall::targets(Handle given, const char* name, int64_t count, const Shape& steps) const {
  Shape expected = steps;
  expected.push_back(count);
  if (PyList_Check(given.ptr())) {
    const auto both = read_list(op, name, given, 2);
    TargetTensors found{targets(both[0], name, count, steps).y, read_floating(op, "weights", both[1], inputs.narrow())};
    require_alike(op, {&inputs, &found.weights});
    require_shape(op, "weights", found.weights, with_tasks(std::move(expected)));
    return found;
  }
  Tensor found(op, given, name);
  const bool classes = loss == Loss::cross_entropy;
  if (classes != (found.dtype() == DType::int64)) throw py::type_error(std::string(op) + ": " + name + " must suit the loss");
  require_alike(op, {&inputs, &found});
  if (!classes) expected.push_back(outputs);
  require_shape(op, name, found, with_tasks(std::move(expected)));
  return {found, Tensor()};
}

Tensors NetworkCall::empty_params(const Tensor& like) const {
  Tensors made;
  for (size_t i = 0; i < params.size(); i++) made.push_back(params[i] ? like.empty(with_tasks(core(int(i)))) : Tensor());
  return made;
}

Tensors NetworkCall::rounded(Tensors tensors) const {
  for (Tensor& tensor : tensors)
    if (tensor) tensor = fastmeta::rounded(inputs, tensor);
  return tensors;
}

int64_t NetworkCall::stride(const Tensor& tensor, size_t i) const {
  const Shape of_task = core(int(i));
  return batched && tensor.dim() > int64_t(of_task.size()) ? product(of_task) : 0;
}

Gradients::Gradients(const NetworkCall& call, Handle needs, Tensors rates)
    : call_(call), rates_(std::move(rates)), needs_(read_needs(needs)) {
  for (size_t i = 0; i < needs_.size(); i++)
    if (needs_[i] && is_summed(i)) total_ += room(call_.with_tasks(core(i)));
}

int64_t Gradients::room(const Shape& shape) const { return call_.by_cuda() ? (product(shape) + 3) / 4 * 4 : product(shape); }

const Tensor& Gradients::input(size_t i) const {
  const size_t params = call_.params.size();
  return i < params ? call_.params[i] : rates_[i - params];
}

Shape Gradients::core(size_t i) const {
  const size_t params = call_.params.size();
  return i < params ? call_.core(int(i)) : rates_[i - params].shape();
}

bool Gradients::is_shared(size_t i) const {
  const size_t params = call_.params.size();
  if (!call_.batched || i >= params + rates_.size()) return false;
  return i >= params || call_.params[i].dim() == int64_t(core(i).size());
}

Tensor Gradients::next(const Shape& core) {
  const size_t i = next_++;
  if (!needs_.at(i)) return Tensor();
  const Shape shape = is_shared(i) && !is_summed(i) ? core : call_.with_tasks(core);
  if (!is_together(i)) {
    made_.push_back(computed_in(call_.inputs).empty(shape));
    return made_.back();
  }
  if (!together_) together_ = computed_in(call_.inputs).empty({total_});
  used_ += room(shape);
  return together_.part(used_ - room(shape), shape);
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

TargetTensors Gradients::for_targets(const TargetTensors& y) {
  const Tensor dy = for_examples(y.y);
  return {dy, y.weights ? for_examples(y.weights) : Tensor()};
}

py::tuple Gradients::finish(Handle made, const Tensor& dloss) const {
  const auto items = read_list(call_.op, "saved", made);
  Tensor together;
  size_t item = 0;
  if (total_) {
    together = Tensor(call_.op, items.at(item++), "saved");
    require_alike(call_.op, {&computed_in(call_.inputs), &together});
    require_shape(call_.op, "saved", together, {total_});
  }
  Tensors gradients, outs;
  std::vector<bool> summed;
  int64_t used = 0;
  for (size_t i = 0; i < needs_.size(); i++) {
    if (!needs_[i]) continue;
    Tensor gradient;
    if (is_together(i)) {
      const Shape shape = call_.with_tasks(core(i));
      gradient = together.part(used, shape);
      used += room(shape);
    } else {
      gradient = Tensor(call_.op, items.at(item++), "saved");
    }
    const Tensor& like = call_.inputs.narrow() ? computed_in(call_.inputs) : input(i);
    outs.push_back(is_summed(i) ? like.empty(core(i)) : gradient);
    gradients.push_back(gradient), summed.push_back(is_summed(i));
  }
  const py::tuple found = of_tasks(call_.op, gradients, summed, call_.tasks, dloss, outs);
  return call_.inputs.narrow() ? pack(call_.rounded(read_tensors(call_.op, "gradients", found))) : found;
}

Tensor loss_cotangent(const NetworkCall& call, Handle cotangents) {
  Tensor dloss = read_floating(call.op, "cotangent", py::tuple(py::reinterpret_borrow<py::object>(cotangents))[0], call.inputs.narrow());
  require_shape(call.op, "cotangent", dloss, call.with_tasks({}));
  require_alike(call.op, {&call.inputs, &dloss});
  return widened(dloss);
}

}  // namespace fastmeta
