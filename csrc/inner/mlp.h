// What every mlp kernel is told, on every device. Sizes: T tasks, n examples, L layers, P parameters of one task.
#pragma once
#include <cstdint>

namespace fastmeta {

constexpr int kMaxLayers = 8;

enum class Activation : int { relu, tanh, gelu, sigmoid, identity };
enum class Loss : int { cross_entropy, mse };
constexpr int64_t kIgnoreIndex = -100;

// x_0 = inputs; x_l = activation(x_{l-1} W_l' + b_l) for l < L; the last layer has no activation. width[l] = size of x_l.
struct MlpShape {
  int64_t tasks;
  int layers;
  int64_t width[kMaxLayers + 1];
  Activation activation;
  Loss loss;
  bool tf32 = false;  // whether products of float32 may be in TF32: those of CUDA layer by layer are
};

// W_l [T, out, in] and b_l [T, out], contiguous. Stride 0: one tensor for all tasks. A null pointer: no such tensor
// (no bias), or, where gradients are written, not asked for.
template <class R>
struct MlpParams {
  R* weight[kMaxLayers] = {};
  R* bias[kMaxLayers] = {};
  int64_t weight_stride[kMaxLayers] = {}, bias_stride[kMaxLayers] = {};
};

// Whether any gradient is asked for.
template <class R>
inline bool any_asked(const MlpParams<R>& grads) {
  for (int l = 0; l < kMaxLayers; l++)
    if (grads.weight[l] || grads.bias[l]) return true;
  return false;
}

// Examples of all tasks: x [T, n, in]; y int64 [T, n] for cross_entropy, R [T, n, out] for mse.
template <class R>
struct MlpExamples {
  int64_t count = 0;
  const R* x = nullptr;
  const void* y = nullptr;
};

// Gradients to the examples, one value for each of theirs; null where not asked for.
template <class R>
struct MlpExampleGrads {
  R* dx = nullptr;  // [T, n, in]
  R* dy = nullptr;  // [T, n, out], mse only
};

// Learning rates: one tensor for all parameters (shared) or one per parameter tensor. Each is [steps or 1, size], size = 1 or the
// elements of the parameter tensor.
template <class R, int tensors>
struct Rates {
  R* value[tensors] = {};
  bool shared = true, per_element = false, per_step = false;
};
template <class R>
using MlpRates = Rates<R, 2 * kMaxLayers>;  // index 2l for W, 2l + 1 for b

template <class R>
struct MlpForward {  // out = mlp(x); with dout given: dparams, dx
  MlpShape shape;
  int64_t count;
  MlpParams<const R> params;
  const R* x;
  R* out;                // [T, n, out]
  const R* dout;         // [T, n, out]
  MlpParams<R> dparams;  // per task, [T, ...]
  R* dx;
};

template <class R>
struct MlpLoss {  // loss [T], and the gradients of each task's loss that are asked for
  MlpShape shape;
  MlpParams<const R> params;
  MlpExamples<R> examples;
  R* loss;
  MlpParams<R> dparams;
  MlpExampleGrads<R> grads;
};

template <class R>
struct MlpCurvature {  // the gradients of dloss . loss + <vectors, dloss/dparams>: dloss * g + H v, and its mixed terms; or J' H_out J v
  MlpShape shape;
  MlpParams<const R> params, vectors;
  MlpExamples<R> examples;
  const R* dloss;  // [T], or null for 0
  MlpParams<R> dparams;
  MlpExampleGrads<R> grads;
  bool gauss_newton = false;  // the Hessian of the loss in the outputs only, between J' and J: with dloss and grads null
};

template <class R>
struct MlpAdapt {  // K inner steps; backward: the chain of Hessian-vector products
  MlpShape shape;
  int64_t steps;
  bool first_order;
  MlpParams<const R> params;
  MlpRates<const R> rates;
  MlpExamples<R> support;
  R* trajectory;         // CUDA, [T, K, P]: the parameters before each step, W_1, b_1, ... of one task in a row; may be null in forward
  MlpParams<R> adapted;  // forward: [T, ...]
  MlpParams<const R> dadapted;  // backward
  MlpParams<R> dparams;
  MlpRates<R> drates;  // per task, [T, steps or 1, size]
  MlpExampleGrads<R> support_grads;
};

template <class R>
struct MlpMetaLoss {  // adaptation and query loss [T]; with gradients asked for, the whole meta-gradient of each task's loss
  MlpShape shape;
  int64_t steps;
  bool first_order, with_grads;
  MlpParams<const R> params;
  MlpRates<const R> rates;
  MlpExamples<R> support, query;
  R* loss;
  MlpParams<R> dparams;
  MlpRates<R> drates;
  MlpExampleGrads<R> support_grads, query_grads;
};

}  // namespace fastmeta
