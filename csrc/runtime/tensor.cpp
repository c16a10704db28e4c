#include "runtime/tensor.h"

#include "runtime/given.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace fastmeta {
namespace {

struct ExchangeApi {  // DLPackExchangeAPI of dlpack.h
  struct {
    uint32_t major, minor;
    void* previous;
  } header;
  void *allocator, *from_object, *to_object;
  int (*view)(void* object, DLTensor* out);
  int (*stream)(int32_t device_type, int32_t device_id, void** out);
};

const ExchangeApi* api = nullptr;

// Kept for the life of the process: destroying them after the interpreter has gone would crash.
PyTypeObject* tensor_type = nullptr;
PyObject* in_memory = nullptr;
const Tensor* of_float = nullptr;  // without elements
struct {
  Py_ssize_t impl, keys;
  uint64_t plain;
} places;

// Whether nothing stands between the tensor's memory and its value.
bool is_plain(PyObject* tensor) {
  if (places.keys < 0) return false;
  const char* impl;
  uint64_t keys;
  std::memcpy(&impl, reinterpret_cast<const char*>(tensor) + places.impl, sizeof(impl));
  std::memcpy(&keys, impl + places.keys, sizeof(keys));
  return !(keys & ~places.plain);
}

PyObject* new_empty_name() {
  static PyObject* name = PyUnicode_InternFromString("new_empty");
  return name;
}
PyObject* empty_like() {
  static PyObject* function = py::object(py::import_module("torch").attr("empty_like")).release().ptr();
  return function;
}
PyObject* contiguous_name() {
  static PyObject* name = PyUnicode_InternFromString("contiguous");
  return name;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

bool is_contiguous(const std::vector<int64_t>& shape, const int64_t* strides) {
  if (!strides || std::find(shape.begin(), shape.end(), 0) != shape.end()) return true;
  int64_t expected = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

// Whether matrices [..., rows, columns] lie by columns, one after the other; then `shape` becomes [..., columns, rows].
bool turn_matrices(std::vector<int64_t>& shape, const int64_t* strides) {
  const size_t n = shape.size();
  if (n < 2) return false;
  std::vector<int64_t> turned(strides, strides + n), by_rows = shape;
  std::swap(turned[n - 1], turned[n - 2]), std::swap(by_rows[n - 1], by_rows[n - 2]);
  if (!is_contiguous(by_rows, turned.data())) return false;
  shape = by_rows;
  return true;
}

[[noreturn]] void refuse(const char* op, const char* name, const std::string& what) {
  throw py::type_error(std::string(op) + ": " + name + " must be " + what);
}
// Such as a DTensor, whose parts are elsewhere.
[[noreturn]] void refuse_elsewhere(const char* op, const char* name, PyObject* tensor) {
  refuse(op, name, std::string("a tensor with memory of its own, got ") + Py_TYPE(tensor)->tp_name);
}
[[noreturn]] void refuse_dtype(const char* op, const char* name) { refuse(op, name, "float32, float64, int64, float16 or bfloat16"); }

DType dtype_of(int code, int bits, const char* op, const char* name) {
  if (code == 2 && bits == 32) return DType::float32;
  if (code == 2 && bits == 16) return DType::float16;
  if (code == 4 && bits == 16) return DType::bfloat16;
  if (code == 2 && bits == 64) return DType::float64;
  if (code == 0 && bits == 64) return DType::int64;
  refuse_dtype(op, name);
}

DType dtype_of(const std::string& text, const char* op, const char* name) {
  if (text == "torch.float32") return DType::float32;
  if (text == "torch.float16") return DType::float16;
  if (text == "torch.bfloat16") return DType::bfloat16;
  if (text == "torch.float64") return DType::float64;
  if (text == "torch.int64") return DType::int64;
  refuse_dtype(op, name);
}

// Asks for huge pages under the memory of a large new tensor: to fault in and clear 4 KiB at a time takes longer than to
// compute what is written there.
void ask_for_huge_pages(void* data, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr std::uintptr_t page = 4096, huge = 2 << 20;
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / page * page;
  if (bytes >= huge && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

void init_tensor(py::handle tensor_class, bool exchange_api) {
  tensor_type = reinterpret_cast<PyTypeObject*>(py::reinterpret_borrow<py::object>(tensor_class).release().ptr());
  api = nullptr;
  of_float = new Tensor("fastmeta._C", py::import_module("torch").attr("FloatTensor")(), "memory");
  if (!exchange_api || !py::hasattr(tensor_class, "__dlpack_c_exchange_api__")) return;
  py::object capsule = tensor_class.attr("__dlpack_c_exchange_api__");
  auto* found = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (!found) throw py::error_already_set();
  if (found->header.major == 1 && found->view && found->stream) api = found;
}

void init_values(py::handle in_memory_, Py_ssize_t impl, Py_ssize_t keys, uint64_t plain) {
  in_memory = py::reinterpret_borrow<py::object>(in_memory_).release().ptr();
  places = {impl, keys, plain};
}

Tensor::Tensor(const char* op, py::handle object, const char* name, bool* turned) {
  if (object.is_none()) return;
  if (!tensor_type) throw std::runtime_error("fastmeta._C: init_tensor must come first");
  if (!PyObject_TypeCheck(object.ptr(), tensor_type)) refuse(op, name, std::string("a tensor, got ") + Py_TYPE(object.ptr())->tp_name);
  object_ = py::reinterpret_borrow<py::object>(object);
  if (in_memory && !is_plain(object_.ptr())) resolve(op, name);
  view(op, name, turned);
}

void Tensor::resolve(const char* op, const char* name) {
  PyObject* found = PyObject_CallOneArg(in_memory, object_.ptr());
  if (!found) throw py::error_already_set();
  const py::object resolved = py::reinterpret_steal<py::object>(found);
  if (resolved.is_none() || (places.keys >= 0 && !is_plain(found))) refuse_elsewhere(op, name, object_.ptr());
  object_ = resolved;
}

void Tensor::view(const char* op, const char* name, bool* turned) {
  bool contiguous;
  if (api) {
    DLTensor t;
    if (api->view(object_.ptr(), &t)) {
      PyErr_Clear();  // torch's own words are a C++ stack trace
      refuse(op, name, "a dense tensor on the CPU or a CUDA device");
    }
    data_ = static_cast<char*>(t.data) + t.byte_offset;
    dtype_ = dtype_of(t.dtype.code, t.dtype.bits, op, name);
    device_ = t.device.type;
    index_ = t.device.id;
    shape_.assign(t.shape, t.shape + t.ndim);
    contiguous = is_contiguous(shape_, t.strides);
    if (!contiguous && turned && turn_matrices(shape_, t.strides)) *turned = contiguous = is_part_ = true;
  } else {
    py::object device = object_.attr("device");
    const auto type = device.attr("type").cast<std::string>();
    data_ = reinterpret_cast<void*>(object_.attr("data_ptr")().cast<std::uintptr_t>());
    dtype_ = dtype_of(py::str(object_.attr("dtype")).cast<std::string>(), op, name);
    device_ = type == "cpu" ? 1 : type == "cuda" ? 2 : 0;
    index_ = device.attr("index").is_none() ? 0 : device.attr("index").cast<int>();
    shape_ = py::tuple(object_.attr("shape")).cast<std::vector<int64_t>>();
    contiguous = object_.attr("is_contiguous")().cast<bool>();
  }
  if (!data_ && numel()) refuse_elsewhere(op, name, object_.ptr());
  if (contiguous) return;
  PyObject* copy = PyObject_CallMethodNoArgs(object_.ptr(), contiguous_name());
  if (!copy) throw py::error_already_set();
  object_ = py::reinterpret_steal<py::object>(copy);
  view(op, name);
}

const Tensor& computed_in(const Tensor& like) { return like.narrow() ? *of_float : like; }

int64_t Tensor::numel() const {
  int64_t count = 1;
  for (int64_t size : shape_) count *= size;
  return count;
}

Tensor Tensor::part(int64_t offset, const std::vector<int64_t>& shape) const {
  Tensor found = *this;
  found.data_ = static_cast<char*>(data_) + offset * item_size();
  found.shape_ = shape;
  found.is_part_ = true;
  return found;
}

Tensor Tensor::empty(const std::vector<int64_t>& shape) const {
  PyObject* made = take_given(*this, shape);
  if (made) return Tensor("fastmeta._C", py::reinterpret_steal<py::object>(made), "output");
  if (shape == shape_ && !is_part_) {
    made = PyObject_CallOneArg(empty_like(), object_.ptr());  // half the price of new_empty
  } else if (shape.empty() && on_cpu() && dtype_ != DType::int64) {
    static PyObject* scalars[5] = {};  // by DType
    PyObject*& scalar = scalars[int(dtype_)];
    if (!scalar) scalar = PyObject_CallMethodOneArg(object_.ptr(), new_empty_name(), py::tuple().ptr());
    made = scalar ? PyObject_CallOneArg(empty_like(), scalar) : nullptr;
  } else {
    py::tuple sizes(shape.size());
    for (size_t i = 0; i < shape.size(); i++) sizes.set(i, py::int_(shape[i]));
    made = PyObject_CallMethodOneArg(object_.ptr(), new_empty_name(), sizes.ptr());
  }
  if (!made) throw py::error_already_set();
  Tensor tensor("fastmeta._C", py::reinterpret_steal<py::object>(made), "output");
  if (tensor.on_cpu()) ask_for_huge_pages(tensor.data<void>(), size_t(tensor.numel() * tensor.item_size()));
  return tensor;
}

static bool view_of(py::handle tensor, DLTensor& t) {
  if (!api || !PyObject_TypeCheck(tensor.ptr(), tensor_type)) return false;
  if (!api->view(tensor.ptr(), &t)) return true;
  PyErr_Clear();
  return false;
}

bool view_in_memory(py::handle tensor, DLTensor& t) {
  return api && PyObject_TypeCheck(tensor.ptr(), tensor_type) && is_plain(tensor.ptr()) && view_of(tensor, t);
}

bool memory_of(py::handle tensor, const char*& begin, const char*& end) {
  DLTensor t;
  if (!view_of(tensor, t)) return false;
  int64_t count = 1, last = 0, step = 1;
  for (int i = t.ndim - 1; i >= 0; i--) {
    count *= t.shape[i];
    last += (t.shape[i] - 1) * (t.strides ? t.strides[i] : step);
    step *= t.shape[i];
  }
  begin = static_cast<const char*>(t.data) + t.byte_offset;
  end = begin + (count ? last + 1 : 0) * ((t.dtype.bits * t.dtype.lanes + 7) / 8);
  return true;
}

void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  if (api) {
    if (api->stream(2, tensor.device_index(), &stream)) throw py::error_already_set();
    return stream;
  }
  py::object current = py::import_module("torch").attr("cuda").attr("current_stream")(tensor.device_index());
  return reinterpret_cast<void*>(current.attr("cuda_stream").cast<std::uintptr_t>());
}

bool allows_tf32(const char* products) {
  static PyObject* const allows = py::import_module("fastmeta._precision").attr("allows_tf32").release().ptr();
  const py::object name = py::owned(PyUnicode_FromString(products));
  return py::owned(PyObject_CallOneArg(allows, name.ptr())).cast<bool>();
}

void require_shape(const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& shape) {
  if (tensor.shape() == shape) return;
  throw py::value_error(std::string(op) + ": " + name + " must have shape " + shape_text(shape) + ", got " + shape_text(tensor.shape()));
}

void require_alike(const char* op, std::initializer_list<const Tensor*> tensors) {
  const Tensor* first = nullptr;
  for (const Tensor* tensor : tensors) {
    if (!*tensor) continue;
    if (!first) first = tensor;
    const bool same_device =
        tensor->on_cpu() == first->on_cpu() && tensor->on_cuda() == first->on_cuda() && tensor->device_index() == first->device_index();
    if (!same_device || (tensor->dtype() != first->dtype() && tensor->dtype() != DType::int64))
      throw py::type_error(std::string(op) + ": the tensors must have one device and one dtype");
  }
}

}  // namespace fastmeta
