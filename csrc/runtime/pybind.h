// Joins pybind11 with python.h, for the files that make a module: arguments and results pass as they are, and errors become Python's.
#pragma once
#include <pybind11/pybind11.h>

#include "runtime/python.h"

namespace fastmeta {

template <class T>
struct PassedOn {  // a caster of pybind11
  static constexpr auto name = pybind11::detail::const_name("object");
  template <class>
  using cast_op_type = T;
  operator T() const { return value; }
  bool load(pybind11::handle from, bool) {
    value = from.ptr();
    return true;
  }
  static pybind11::handle cast(py::object&& from, pybind11::return_value_policy, pybind11::handle) { return from.release().ptr(); }
  py::handle value;
};

inline void translate(std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (py::error_already_set& e) {
    e.restore();
  } catch (const py::value_error& e) {
    PyErr_SetString(PyExc_ValueError, e.what());
  } catch (const py::type_error& e) {
    PyErr_SetString(PyExc_TypeError, e.what());
  }
}

// What function answers, or, where it declines its arguments, the reason as a str: the caller has another way and asks no exception.
template <auto function, class... Args>
py::object answer(Args... args) {
  try {
    return function(args...);
  } catch (const py::type_error& e) {
    return py::owned(PyUnicode_FromString(e.what()));
  } catch (const py::value_error& e) {
    return py::owned(PyUnicode_FromString(e.what()));
  } catch (py::error_already_set& e) {
    if (!e.matches(PyExc_TypeError) && !e.matches(PyExc_ValueError)) throw;
    return py::str(e.value());
  }
}
template <auto function>
struct Declining;
template <class... Args, py::tuple (*function)(Args...)>
struct Declining<function> {
  static py::object call(Args... args) { return answer<function, Args...>(args...); }
};
template <auto function>
constexpr auto declining = &Declining<function>::call;

}  // namespace fastmeta

namespace pybind11::detail {
template <>
struct type_caster<fastmeta::py::handle> : fastmeta::PassedOn<fastmeta::py::handle> {};
template <>
struct type_caster<fastmeta::py::object> : fastmeta::PassedOn<fastmeta::py::object> {};
template <>
struct type_caster<fastmeta::py::tuple> : fastmeta::PassedOn<fastmeta::py::tuple> {};
}  // namespace pybind11::detail
