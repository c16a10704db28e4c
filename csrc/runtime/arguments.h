// What the Python-facing functions share: reading their arguments, running a kernel, packing the results.
// Messages follow the project's form, "<op>: <what must hold>, got <what came>".
#pragma once
#include <algorithm>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "runtime/tensor.h"

namespace fastmeta {

using Shape = std::vector<int64_t>;

// `needs`, one bool for each flat input; with `count`, ValueError unless there are so many.
std::vector<bool> read_needs(py::handle needs);
std::vector<bool> read_needs(const char* op, py::handle needs, size_t count);
inline bool any(const std::vector<bool>& needs) { return std::find(needs.begin(), needs.end(), true) != needs.end(); }

// TypeError unless float32 or float64; or, where the op has kernels for them, one of `narrow`: float16 or bfloat16. `turned`: Tensor().
Tensor read_floating(const char* op, const char* name, py::handle object, bool narrow = false, bool* turned = nullptr);
// The same, empty for None.
Tensor read_floating_or_none(const char* op, const char* name, py::handle object, bool narrow = false, bool* turned = nullptr);
Tensor read_int64(const char* op, const char* name, py::handle object);  // TypeError unless int64
bool is_number(py::handle object);                                       // of Python, not a tensor or a bool
// ValueError where the number is too large for a double.
double read_number(const char* op, const char* name, py::handle object);
// A number, or the one element of a CPU tensor with the dtype of `like`.
double read_number(const char* op, const char* name, py::handle object, const Tensor& like);
// ValueError where an element of a CPU tensor is NaN or infinite; one on another device is not looked at.
void require_finite(const char* op, const char* name, const Tensor& tensor);
[[noreturn]] void refuse_not_finite(const char* op, const char* name, double value);

// The items of a list or tuple; ValueError unless there are `count`.
std::vector<py::object> read_list(const char* op, const char* name, py::handle list);
std::vector<py::object> read_list(const char* op, const char* name, py::handle list, size_t count);
// The same as floating tensors, an empty Tensor where an item is None.
std::vector<Tensor> read_tensors(const char* op, const char* name, py::handle list, bool narrow = false);

size_t read_choice(const char* op, const char* name, const std::string& value, std::initializer_list<const char*> names);
// The enumerator whose place in its enum is that of `value` in `names`; ValueError where it is not there.
template <class Enum>
Enum read_enum(const char* op, const char* name, const std::string& value, std::initializer_list<const char*> names) {
  return static_cast<Enum>(read_choice(op, name, value, names));
}

// TypeError unless every non-empty tensor is on the CPU.
void require_cpu(const char* op, std::initializer_list<const Tensor*> tensors);
// ValueError unless the tensor has `rank` dimensions, or one more: the tasks in front. Returns whether it has those.
bool require_rank(const char* op, const char* name, const Tensor& tensor, int64_t rank);

// [tasks, *core] or [*core].
Shape with_tasks(bool has_tasks, int64_t tasks, Shape core);

// Calls body(float()) or body(double()): the argument carries the type that kernels compute in.
template <class Body>
auto by_dtype(DType dtype, Body&& body) {
  return dtype == DType::float64 ? body(double()) : body(float());
}

// The numbers of a CPU tensor as R; those of 16 bits are widened into `room`.
template <class R>
const R* numbers(const Tensor& tensor, std::vector<R>& room);
// A CPU tensor in the dtype that kernels compute in, and such a one in the dtype of `like`: itself where that is its own.
Tensor widened(const Tensor& tensor);
Tensor rounded(const Tensor& like, const Tensor& tensor);
// Writes `values` into a CPU tensor, rounded to what it stores.
void write_numbers(const Tensor& tensor, const double* values);

// Runs a kernel, without the GIL where its work (about its multiply-adds) is worth the time that releasing it takes.
template <class Kernel>
void run_kernel(int64_t work, Kernel&& kernel) {
  if (work < 10000) return kernel();
  py::gil_scoped_release release;
  kernel();
}

// A loss's gradients [tasks, ...], made for cotangents 1, times each task's `dloss` ([tasks] or (); empty: 1), in place, or where
// `summed` their sums over the tasks in order, into new tensors or those of `outs`. One kernel for all.
py::tuple of_tasks(const char* op, const std::vector<Tensor>& made, const std::vector<bool>& summed, int64_t tasks, const Tensor& dloss,
                   std::vector<Tensor> outs = {});

// RuntimeError with CUDA's words where a launch failed.
void require_launched(const char* op, const char* error);

// The Python objects of the tensors, without the empty ones.
py::tuple pack(const std::vector<Tensor>& tensors);

}  // namespace fastmeta
