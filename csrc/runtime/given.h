// Memory that a caller gives for results (`out=` of value_and_grad): Tensor::empty takes it where it fits, and nothing new is made.
#pragma once
#include "runtime/tensor.h"

namespace fastmeta {

// For this thread, until the next call: those of `outs` that are contiguous and share no memory with each other or with `inputs`.
// TypeError for what is no tensor of floating point.
void give_outputs(py::handle outs, py::handle inputs);

// One given, not taken yet, with `like`'s dtype and device: a new reference, or null.
PyObject* take_given(const Tensor& like, const std::vector<int64_t>& shape);

}  // namespace fastmeta
