// What the way of a call on a GPU depends on, as a key for what was prepared for such calls.
#pragma once
#include "runtime/python.h"

namespace fastmeta {

// (key, pointers) of a flat tuple of tensors, numbers and None. The key is of the tensors' dtypes, devices, shapes, strides and
// alignments to 16 bytes, and of whether numbers are positive and finite. `pointers` has the address of a tensor's memory, numbers and
// None as they are. None for anything else among the items, such as a tensor whose memory is not its value.
py::object describe(py::handle flat);

}  // namespace fastmeta
