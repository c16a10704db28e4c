#include "runtime/describe.h"

#include <cmath>
#include <string>

#include "runtime/tensor.h"

namespace fastmeta {
namespace {

void put(std::string& key, int64_t number) { key.append(reinterpret_cast<const char*>(&number), sizeof(number)); }

// The tensor's part of the key; its address, or -1 where it has no memory that is its value.
int64_t put_tensor(std::string& key, PyObject* item) {
  DLTensor t;
  if (!view_in_memory(item, t)) return -1;
  const auto address = reinterpret_cast<int64_t>(t.data) + int64_t(t.byte_offset);
  put(key, int64_t(t.dtype.code) << 56 | int64_t(t.dtype.bits) << 48 | int64_t(t.ndim) << 40 | int64_t(address % 16) << 32 | t.device.id);
  put(key, t.device.type);
  int64_t count = 1, step = 1;
  for (int i = t.ndim - 1; i >= 0; i--) {
    put(key, t.shape[i]);
    put(key, t.strides ? t.strides[i] : step);
    count *= t.shape[i], step *= t.shape[i];
  }
  return address || !count ? address : -1;
}

}  // namespace

py::object describe(py::handle flat) {
  if (!PyTuple_Check(flat.ptr())) return py::none();
  const Py_ssize_t size = PyTuple_GET_SIZE(flat.ptr());
  std::string key;
  key.reserve(size_t(size) * 80);
  py::object pointers = py::owned(PyList_New(size));
  for (Py_ssize_t i = 0; i < size; i++) {
    PyObject* item = PyTuple_GET_ITEM(flat.ptr(), i);
    py::object pointer = py::to_object(item);
    if (item == Py_None) {
      key += 'n';
    } else if (PyFloat_CheckExact(item)) {
      const double value = PyFloat_AS_DOUBLE(item);
      key += !std::isfinite(value) ? 'x' : value > 0 ? 'p' : 'f';
    } else {
      key += 't';
      const int64_t address = put_tensor(key, item);
      if (address < 0) return py::none();
      pointer = py::int_(address);
    }
    PyList_SET_ITEM(pointers.ptr(), i, pointer.release().ptr());
  }
  const py::object bytes = py::owned(PyBytes_FromStringAndSize(key.data(), Py_ssize_t(key.size())));
  return py::make_tuple(bytes, pointers);
}

}  // namespace fastmeta
