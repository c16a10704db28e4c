// The few words of pybind11 that the front ends use, over Python.h alone: pybind11's own headers take seconds in every file that
// includes them, so bindings.cpp includes them and nothing else (pybind.h joins the two). What throws holds the GIL.
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace fastmeta::py {

struct type_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct value_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class object;

// A Python object that somebody else owns.
class handle {
 public:
  handle() = default;
  handle(PyObject* pointer) : pointer_(pointer) {}  // NOLINT: as pybind11's

  PyObject* ptr() const { return pointer_; }
  bool is_none() const { return pointer_ == Py_None; }
  explicit operator bool() const { return pointer_; }
  object attr(const char* name) const;
  template <class... Args>
  object operator()(const Args&... arguments) const;
  template <class T>
  T cast() const;

 protected:
  PyObject* pointer_ = nullptr;
};

// A Python object with a reference to it.
class object : public handle {
 public:
  object() = default;
  object(const object& other) : handle(other) { Py_XINCREF(pointer_); }
  object(object&& other) noexcept : handle(other) { other.pointer_ = nullptr; }
  object& operator=(object other) noexcept {
    std::swap(pointer_, other.pointer_);
    return *this;
  }
  ~object() { Py_XDECREF(pointer_); }
  handle release() {
    const handle released = *this;
    pointer_ = nullptr;
    return released;
  }

  static object steal(PyObject* owned) {
    object found;
    found.pointer_ = owned;
    return found;
  }
};

template <class T>
object reinterpret_steal(handle owned) {
  return object::steal(owned.ptr());
}
template <class T>
object reinterpret_borrow(handle borrowed) {
  Py_XINCREF(borrowed.ptr());
  return object::steal(borrowed.ptr());
}
inline object none() { return reinterpret_borrow<object>(Py_None); }

// The error that Python has set, kept while C++ unwinds.
class error_already_set : public std::exception {
 public:
  error_already_set() {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    type_ = object::steal(type), value_ = object::steal(value), trace_ = object::steal(trace);
  }
  bool matches(PyObject* kind) const { return PyErr_GivenExceptionMatches(type_.ptr(), kind); }
  handle value() const { return value_; }
  void restore() { PyErr_Restore(type_.release().ptr(), value_.release().ptr(), trace_.release().ptr()); }

 private:
  object type_, value_, trace_;
};

// A new reference, or null with Python's error set.
inline object owned(PyObject* made) {
  if (!made) throw error_already_set();
  return object::steal(made);
}

inline object to_object(handle x) { return reinterpret_borrow<object>(x); }
template <class N, class = std::enable_if_t<std::is_arithmetic_v<N>>>
object to_object(N x) {
  if constexpr (std::is_same_v<N, bool>) return reinterpret_borrow<object>(x ? Py_True : Py_False);
  else if constexpr (std::is_floating_point_v<N>) return owned(PyFloat_FromDouble(x));
  else return owned(PyLong_FromLongLong(static_cast<long long>(x)));
}
inline object int_(int64_t x) { return to_object(x); }
inline object str(handle x) { return owned(PyObject_Str(x.ptr())); }
inline object import_module(const char* name) { return owned(PyImport_ImportModule(name)); }
inline bool hasattr(handle x, const char* name) { return PyObject_HasAttrString(x.ptr(), name); }
inline int64_t len(handle x) {
  const Py_ssize_t size = PyObject_Size(x.ptr());
  if (size < 0) throw error_already_set();
  return size;
}

class list : public object {
 public:
  list() : object(owned(PyList_New(0))) {}
  void append(handle x) {
    if (PyList_Append(pointer_, x.ptr())) throw error_already_set();
  }
};

class tuple : public object {
 public:
  explicit tuple(size_t size = 0) : object(owned(PyTuple_New(Py_ssize_t(size)))) {}
  explicit tuple(const object& items) : object(PyTuple_Check(items.ptr()) ? items : owned(PySequence_Tuple(items.ptr()))) {}
  size_t size() const { return size_t(PyTuple_GET_SIZE(pointer_)); }
  object operator[](size_t i) const {
    if (i >= size()) throw std::out_of_range("tuple index out of range");
    return reinterpret_borrow<object>(PyTuple_GET_ITEM(pointer_, Py_ssize_t(i)));
  }
  void set(size_t i, object x) { PyTuple_SET_ITEM(pointer_, Py_ssize_t(i), x.release().ptr()); }  // once each, of a new one
};

template <class... Items>
tuple make_tuple(const Items&... items) {
  tuple made(sizeof...(items));
  size_t i = 0;
  (made.set(i++, to_object(items)), ...);
  return made;
}

inline object handle::attr(const char* name) const { return owned(PyObject_GetAttrString(pointer_, name)); }
template <class... Args>
object handle::operator()(const Args&... arguments) const {
  return owned(PyObject_CallObject(pointer_, make_tuple(arguments...).ptr()));
}

// What cast<T>() reads. TypeError where the object is of another kind.
inline void read(handle from, double& to) {
  to = PyFloat_AsDouble(from.ptr());
  if (to == -1 && PyErr_Occurred()) throw error_already_set();
}
template <class N, class = std::enable_if_t<std::is_integral_v<N>>>
void read(handle from, N& to) {
  const long long value = PyLong_AsLongLong(owned(PyNumber_Index(from.ptr())).ptr());
  if (value == -1 && PyErr_Occurred()) throw error_already_set();
  to = static_cast<N>(value);
}
inline void read(handle from, bool& to) {
  const int truth = PyObject_IsTrue(from.ptr());
  if (truth < 0) throw error_already_set();
  to = truth;
}
inline void read(handle from, std::string& to) {
  Py_ssize_t size;
  const char* text = PyUnicode_AsUTF8AndSize(from.ptr(), &size);
  if (!text) throw error_already_set();
  to.assign(text, size_t(size));
}
template <class T>
void read(handle from, std::vector<T>& to) {
  const tuple items(reinterpret_borrow<object>(from));
  to.resize(items.size());
  for (size_t i = 0; i < to.size(); i++) read(items[i], to[i]);
}
template <class... T>
void read(handle from, std::tuple<T...>& to) {
  const tuple items(reinterpret_borrow<object>(from));
  if (items.size() != sizeof...(T)) throw type_error("a tuple must have " + std::to_string(sizeof...(T)) + " items");
  size_t i = 0;
  std::apply([&](T&... each) { (read(items[i++], each), ...); }, to);
}
template <class T>
T handle::cast() const {
  T found;
  read(*this, found);
  return found;
}
template <class T>
T cast(handle from) {
  return from.cast<T>();
}

class gil_scoped_release {
 public:
  gil_scoped_release() : state_(PyEval_SaveThread()) {}
  gil_scoped_release(const gil_scoped_release&) = delete;
  ~gil_scoped_release() { PyEval_RestoreThread(state_); }

 private:
  PyThreadState* state_;
};

}  // namespace fastmeta::py
