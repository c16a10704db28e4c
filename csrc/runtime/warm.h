// Large memory that stays mapped from call to call: to fault in fresh pages takes a third of an encoder's forward pass
// (AMD EPYC, 2 cores, 80 images 84x84, 2026-11-30).
#pragma once
#include "runtime/tensor.h"

namespace fastmeta {

// An uninitialised CPU tensor of so many numbers of like's dtype. Its memory comes back here when the tensor is freed, for the next one
// that fits; what has not served while a few others did not fit is given back to the system.
Tensor warm_tensor(const Tensor& like, int64_t count);

}  // namespace fastmeta
