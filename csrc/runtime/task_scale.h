#pragma once
#include "inner/mlp.h"

namespace fastmeta {

// From the gradients of each task's loss, which forward made, to those that backward is asked for: for each of `count` arrays
// out[t, i] = dloss[t] * unit[t, i], or, where it is shared by the tasks, out[i] the sum of these over them.
template <class R>
struct TaskScale {
  struct Array {
    int64_t size;
    bool shared;
    const R* unit;
    R* out;  // may be `unit`, unless shared
  };
  static constexpr int kMost = 4 * kMaxLayers + 6;  // of a launch: parameters, rates, inputs, targets and weights of an MLP
  int64_t T;
  const R* dloss;  // [T]; null: ones
  int count = 0;
  Array arrays[kMost];
};

}  // namespace fastmeta
