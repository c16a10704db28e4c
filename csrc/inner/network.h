// What a kernel of a network is told, on every device. Sizes: T tasks, n examples, K inner steps.
//
// N is the network: MlpShape (mlp.h) or ConvNet (conv.h). It says what one task's parameters are (Params, kTensors), how many numbers
// an example has (example_size()), how many its output (output_size()), what a forward pass of it costs (multiply_adds()), and the loss.
#pragma once
#include <cstdint>
#include <type_traits>

#include "inner/optimiser_step.h"

namespace fastmeta {

enum class Loss : int { cross_entropy, mse };
constexpr int64_t kIgnoreIndex = -100;

// Examples of all tasks: x [T, n, ...]; y int64 [T, n] for cross_entropy, R [T, n, outputs] for mse; weights [T, n] of their losses, null
// for ones.
template <class R>
struct Examples {
  int64_t count = 0;
  const R* x = nullptr;
  const void* y = nullptr;
  const R* weights = nullptr;
};

// Gradients to the examples, one value for each of theirs; null where not asked for.
template <class R>
struct ExampleGrads {
  R* dx = nullptr;
  R* dy = nullptr;        // mse only
  R* dweights = nullptr;  // where there are weights
};

// Learning rates: one tensor for all parameters (shared) or one per parameter tensor. Each is [steps or 1, size], size = 1 or the
// elements of the parameter tensor; or a number, where `value` is null.
template <class R, int tensors>
struct Rates {
  R* value[tensors] = {};
  bool shared = true, per_element = false, per_step = false;
  std::remove_const_t<R> number[tensors] = {};
};

template <class R, class N>
using ParamsOf = typename N::template Params<R>;
template <class R, class N>
using RatesOf = Rates<R, N::kTensors>;

template <class R, class N>
struct ForwardCall {  // out = network(x); with dout given: dparams, dx
  N shape;
  int64_t count = 0;
  ParamsOf<const R, N> params;
  const R* x = nullptr;
  R* out = nullptr;         // forward, [T, n, outputs]
  const R* dout = nullptr;  // backward
  ParamsOf<R, N> dparams;   // per task, [T, ...]
  R* dx = nullptr;
};

template <class R, class N>
struct LossCall {  // loss [T], and the gradients of each task's loss that are asked for
  N shape;
  ParamsOf<const R, N> params;
  Examples<R> examples;
  R* loss = nullptr;
  ParamsOf<R, N> dparams;
  ExampleGrads<R> grads;
};

template <class R, class N>
struct CurvatureCall {  // the gradients of dloss . loss + <vectors, dloss/dparams>: dloss * g + H v, and its mixed terms; or J' H_out J v
  N shape;
  ParamsOf<const R, N> params, vectors;
  Examples<R> examples;
  const R* dloss = nullptr;  // [T], or null for 0
  ParamsOf<R, N> dparams;
  ExampleGrads<R> grads;
  bool gauss_newton = false;  // the Hessian of the loss in the outputs only, between J' and J: with dloss and grads null
};

template <class R, class N>
struct AdaptCall {  // K inner steps; backward: the chain of Hessian-vector products
  N shape;
  int64_t steps = 0;
  bool first_order = false;
  ParamsOf<const R, N> params;
  RatesOf<const R, N> rates;
  Examples<R> support;
  R* trajectory =
      nullptr;             // CUDA, [T, K, P]: the parameters before each step, one tensor of one task after another; may be null in forward
  ParamsOf<R, N> adapted;  // forward: [T, ...]
  ParamsOf<const R, N> dadapted;  // backward
  ParamsOf<R, N> dparams;
  RatesOf<R, N> drates;  // per task, [T, steps or 1, size]
  ExampleGrads<R> support_grads;
  bool batch_per_step = false;                // the support's tensors are [T, steps, n, ...], on a CPU
  const InnerOptimiser* optimiser = nullptr;  // null: theta - alpha g; on a CPU
};

template <class R, class N>
struct MetaLossCall {  // adaptation and query loss [T]; with gradients asked for, the whole meta-gradient of each task's loss
  N shape;
  int64_t steps = 0;
  bool first_order = false, with_grads = false;
  ParamsOf<const R, N> params;
  RatesOf<const R, N> rates;
  Examples<R> support, query;
  R* loss = nullptr;
  R* outputs = nullptr;  // of the query, [T, n, outputs], null where not asked for; but of MLPs on CUDA
  ParamsOf<R, N> dparams;
  RatesOf<R, N> drates;
  ExampleGrads<R> support_grads, query_grads;
  // Of convolutional networks on a CPU: means and unbiased variances of the batches that batch norms meet, of the support step by step,
  // then of the query, [T, K + 1, 2, channels of all]; null where not asked for.
  R* statistics = nullptr;
  bool batch_per_step = false;  // as in AdaptCall
  const InnerOptimiser* optimiser = nullptr;
};

// Of the support of a task.
template <class Call>
int64_t batches(const Call& call) {
  return call.batch_per_step ? call.steps : 1;
}

}  // namespace fastmeta
