// What the kernels of momentum_step and adam_step are told, and an inner loop of its optimiser. All tensors are contiguous.
#pragma once
#include <cstdint>

namespace fastmeta {

constexpr int kMostState = 2;             // tensors of state that a parameter has
constexpr int kMostIn = 3 + kMostState;   // parameter, gradient, state, rate
constexpr int kMostOut = 1 + kMostState;  // parameter, state

enum class Spread : int { number, shared, own };  // one number; [size], shared by the tasks; [tasks, size]

// Of torch.optim's SGD with momentum, and Adam. Corrections: 1 - beta^step.
struct OptimiserNumbers {
  double weight_decay = 0, momentum = 0, beta1 = 0, beta2 = 0, eps = 0, correction1 = 0, correction2 = 0;
  bool nesterov = false;
};

struct InnerOptimiser : OptimiserNumbers {
  bool adam = false;     // else SGD
  bool eps_hat = false;  // eps stands beside the root of v before its correction
};

template <class R>
struct OptimiserStep : OptimiserNumbers {
  struct Item {
    int64_t tasks, size;  // outputs are [tasks, size]
    Spread spread[kMostIn];
    const R* in[kMostIn];
    R* out[kMostOut];         // of forward
    const R* dout[kMostOut];  // of backward
    R* din[kMostIn];          // null: not asked for
  };
  int64_t count;
  const Item* items;
  bool one_rate;     // one number for all items: its gradient, summed over them, goes to the first item's din
  bool* not_finite;  // set by forward where a rate of an element is NaN or infinite
};

}  // namespace fastmeta
