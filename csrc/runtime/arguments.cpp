#include "runtime/arguments.h"

#include <algorithm>
#include <cmath>

#include "runtime/cpu/kernels.h"
#ifdef FASTMETA_CUDA
#include "runtime/cuda/kernels.h"
#endif

namespace fastmeta {
namespace {

std::string text(const char* op, const std::string& rest) { return std::string(op) + ": " + rest; }

}  // namespace

std::vector<bool> read_needs(py::handle needs) {
  std::vector<bool> read;
  for (const py::object& need : read_list("fastmeta._C", "needs", needs)) {
    const int truth = PyObject_IsTrue(need.ptr());
    if (truth < 0) throw py::error_already_set();
    read.push_back(truth == 1);
  }
  return read;
}

std::vector<bool> read_needs(const char* op, py::handle needs, size_t count) {
  std::vector<bool> read = read_needs(needs);
  if (read.size() != count)
    throw py::value_error(text(op, "needs must have " + std::to_string(count) + " entries, got " + std::to_string(read.size())));
  return read;
}

Tensor read_floating(const char* op, const char* name, py::handle object, bool narrow, bool* turned) {
  if (object.is_none()) throw py::type_error(text(op, std::string(name) + " must be a tensor, got None"));
  Tensor tensor(op, object, name, turned);
  if (tensor.dtype() == DType::int64) throw py::type_error(text(op, std::string(name) + " must be float32 or float64, got int64"));
  if (tensor.narrow() && !narrow) throw py::type_error(text(op, std::string(name) + " must be float32 or float64, got 16 bits"));
  return tensor;
}

Tensor read_floating_or_none(const char* op, const char* name, py::handle object, bool narrow, bool* turned) {
  return object.is_none() ? Tensor() : read_floating(op, name, object, narrow, turned);
}

Tensor read_int64(const char* op, const char* name, py::handle object) {
  if (object.is_none()) throw py::type_error(text(op, std::string(name) + " must be a tensor, got None"));
  Tensor tensor(op, object, name);
  if (tensor.dtype() != DType::int64) throw py::type_error(text(op, std::string(name) + " must be int64, got a floating tensor"));
  return tensor;
}

bool is_number(py::handle object) { return PyFloat_Check(object.ptr()) || (PyLong_Check(object.ptr()) && !PyBool_Check(object.ptr())); }

double read_number(const char* op, const char* name, py::handle object) {
  const double value = PyFloat_AsDouble(object.ptr());
  if (value != -1 || !PyErr_Occurred()) return value;
  PyErr_Clear();
  refuse_not_finite(op, name, HUGE_VAL);  // an integer beyond double
}

double read_number(const char* op, const char* name, py::handle object, const Tensor& like) {
  if (is_number(object)) return read_number(op, name, object);
  Tensor tensor = read_floating(op, name, object, like.narrow());
  require_cpu(op, {&tensor});
  require_alike(op, {&like, &tensor});
  if (tensor.numel() != 1)
    throw py::value_error(text(op, std::string(name) + " must have one element, got " + std::to_string(tensor.numel())));
  return by_dtype(tensor.dtype(), [&](auto zero) {
    std::vector<decltype(zero)> room;
    return double(*numbers(tensor, room));
  });
}

template <class R>
const R* numbers(const Tensor& tensor, std::vector<R>& room) {
  if constexpr (sizeof(R) == sizeof(float))
    if (tensor.narrow()) {
      room.resize(size_t(tensor.numel()));
      cpu<R>().widen(tensor.stored<R>().as, tensor.data<uint16_t>(), tensor.numel(), room.data());
      return room.data();
    }
  return tensor.data<R>();
}
template const float* numbers(const Tensor&, std::vector<float>&);
template const double* numbers(const Tensor&, std::vector<double>&);

Tensor widened(const Tensor& tensor) {
  if (!tensor.narrow()) return tensor;
  const Tensor found = computed_in(tensor).empty(tensor.shape());
  cpu<float>().widen(tensor.stored<float>().as, tensor.data<uint16_t>(), tensor.numel(), found.data<float>());
  return found;
}

Tensor rounded(const Tensor& like, const Tensor& tensor) {
  if (!like.narrow() || tensor.dtype() == like.dtype()) return tensor;
  const Tensor found = like.empty(tensor.shape());
  cpu<float>().narrow(found.stored<float>().as, tensor.data<float>(), tensor.numel(), found.data<uint16_t>());
  return found;
}

void write_numbers(const Tensor& tensor, const double* values) {
  if (tensor.dtype() == DType::float64) return void(std::copy_n(values, tensor.numel(), tensor.data<double>()));
  if (!tensor.narrow()) return void(std::copy_n(values, tensor.numel(), tensor.data<float>()));
  const std::vector<float> rounded(values, values + tensor.numel());
  cpu<float>().narrow(tensor.stored<float>().as, rounded.data(), tensor.numel(), tensor.data<uint16_t>());
}

void require_finite(const char* op, const char* name, const Tensor& tensor) {
  if (!tensor.on_cpu()) return;
  by_dtype(tensor.dtype(), [&](auto zero) {
    std::vector<decltype(zero)> room;
    const auto *values = numbers(tensor, room), *end = values + tensor.numel();
    bool finite = true;
    for (const auto* x = values; x < end; x++) finite &= std::isfinite(*x);
    if (!finite) refuse_not_finite(op, name, *std::find_if(values, end, [](auto x) { return !std::isfinite(x); }));
  });
}

void refuse_not_finite(const char* op, const char* name, double value) {
  throw py::value_error(text(op, std::string(name) + " must be finite, got " + (std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf")));
}

std::vector<py::object> read_list(const char* op, const char* name, py::handle list) {
  if (!PyList_Check(list.ptr()) && !PyTuple_Check(list.ptr()))
    throw py::type_error(text(op, std::string(name) + " must be a list or tuple, got " + Py_TYPE(list.ptr())->tp_name));
  std::vector<py::object> items;
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(list.ptr());
  items.reserve(size_t(count));
  for (Py_ssize_t i = 0; i < count; i++) items.push_back(py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(list.ptr(), i)));
  return items;
}

std::vector<py::object> read_list(const char* op, const char* name, py::handle list, size_t count) {
  std::vector<py::object> items = read_list(op, name, list);
  if (items.size() != count)
    throw py::value_error(
        text(op, std::string(name) + " must have " + std::to_string(count) + " entries, got " + std::to_string(items.size())));
  return items;
}

std::vector<Tensor> read_tensors(const char* op, const char* name, py::handle list, bool narrow) {
  std::vector<Tensor> tensors;
  for (const py::object& item : read_list(op, name, list))
    tensors.push_back(item.is_none() ? Tensor() : read_floating(op, name, item, narrow));
  return tensors;
}

size_t read_choice(const char* op, const char* name, const std::string& value, std::initializer_list<const char*> names) {
  std::string all;
  for (const char* const* each = names.begin(); each != names.end(); each++) {
    if (value == *each) return size_t(each - names.begin());
    all += (all.empty() ? "'" : ", '") + std::string(*each) + "'";
  }
  throw py::value_error(text(op, std::string(name) + " must be one of " + all + ", got '" + value + "'"));
}

void require_cpu(const char* op, std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* tensor : tensors)
    if (*tensor && !tensor->on_cpu()) throw py::type_error(text(op, "the tensors must be on the CPU, got one on another device"));
}

bool require_rank(const char* op, const char* name, const Tensor& tensor, int64_t rank) {
  if (tensor.dim() == rank || tensor.dim() == rank + 1) return tensor.dim() > rank;
  throw py::value_error(text(op, std::string(name) + " must have " + std::to_string(rank) + " dimensions, or one more for the tasks, got " +
                                     std::to_string(tensor.dim())));
}

Shape with_tasks(bool has_tasks, int64_t tasks, Shape core) {
  if (has_tasks) core.insert(core.begin(), tasks);
  return core;
}

namespace {

template <class R>
void run_task_scale(const char* op, const TaskScale<R>& p, const Tensor& like) {
  if (like.on_cpu()) return run_kernel(p.T * p.arrays[0].size * p.count, [&] { cpu<R>().task_scale(p); });
#ifdef FASTMETA_CUDA
  cuda::DeviceGuard guard(like.device_index());
  require_launched(op, cuda::task_scale(p, current_stream(like)));
#endif
}

}  // namespace

void require_launched(const char* op, const char* error) {
  if (error) throw std::runtime_error(std::string(op) + ": the CUDA launch must succeed, got " + error);
}

py::tuple of_tasks(const char* op, const std::vector<Tensor>& made, const std::vector<bool>& summed, int64_t tasks, const Tensor& dloss,
                   std::vector<Tensor> outs) {
  for (size_t i = outs.size(); i < made.size(); i++) {
    const Shape& shape = made[i].shape();
    outs.push_back(summed[i] ? made[i].empty(Shape(shape.begin() + 1, shape.end())) : made[i]);
  }
  if (!outs.empty())
    by_dtype(outs[0].dtype(), [&](auto zero) {
      using R = decltype(zero);
      TaskScale<R> p{tasks, dloss.data<R>()};
      for (size_t i = 0; i < outs.size(); i++) {
        if (!summed[i] && !(dloss && outs[i].numel())) continue;
        if (p.count == p.kMost) run_task_scale(op, p, outs[0]), p.count = 0;
        p.arrays[p.count++] = {summed[i] ? outs[i].numel() : outs[i].numel() / tasks, summed[i], made[i].data<R>(), outs[i].data<R>()};
      }
      if (p.count) run_task_scale(op, p, outs[0]);
    });
  return pack(outs);
}

py::tuple pack(const std::vector<Tensor>& tensors) {
  size_t count = 0;
  for (const Tensor& tensor : tensors) count += bool(tensor);
  py::tuple packed(count);
  size_t i = 0;
  for (const Tensor& tensor : tensors)
    if (tensor) packed.set(i++, tensor.object());
  return packed;
}

}  // namespace fastmeta
