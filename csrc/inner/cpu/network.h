// A network on the CPU: of one task, on one thread, in scratch memory that stays in cache. It is a few functions of the parameters theta,
// a block (its layout says what lies where), and of a pass, which holds n examples and what the functions leave:
//
//   forward(theta, pass)                          the outputs
//   store_statistics(theta, pass, to)             after forward: MetaLossCall's statistics of the batch; `to` null: nothing
//   loss(y, pass, dweights)                       -> the mean loss of the outputs; its gradient to them, and to the weights of y
//   backward(theta, pass, grad, dx)               grad = J' doutputs; dx += the gradient to the inputs
//   curvature(theta, v, pass, y, dloss, sum, dx)  after backward: sum += H v + dloss grad; dx += the same derivative to the inputs;
//                                                 output_tangents() = the tangents of doutputs, plus dloss doutputs
//
// add_weight_tangents(pass, y, dweights), after curvature: dweights += its derivative to the weights, but for dloss; and
// gauss_newton(theta, v, pass, y, product), product = J' H_out J v. MlpNetwork and ConvNetwork are such. What is below, the inner loop
// (inner_loop.h) and the ops know no more of a network, so that they are written once.
#pragma once
#include <cstring>

#include "inner/network.h"
#include "inner/cpu/outputs.h"
#include "runtime/cpu/scratch.h"
#include "runtime/parallel.h"

namespace fastmeta::FASTMETA_ISA {

template <class R, class N>
struct NetworkOf;  // type: the network that N describes
template <class R, class N>
using Network = typename NetworkOf<R, N>::type;
template <class R, class N>
using LayoutOf = typename Network<R, N>::Layout;
template <class R, class N>
using PassOf = typename Network<R, N>::Pass;

// Loads one task's parameters after another's into the same block; those that all tasks share, once.
template <class R, class N>
class Loader {
 public:
  void load(const LayoutOf<R, N>& layout, const ParamsOf<const R, N>& from, int64_t task, R* block) {
    if (task_ < 0 || (task_ != task && !layout.shared)) load_block(layout, from, task, block);
    task_ = task;
  }

 private:
  int64_t task_ = -1;
};

// The targets from an example on, counted through all tasks.
template <class R, class N>
Targets<R> targets_at(const N& shape, const Examples<R>& examples, int64_t example) {
  const R* weights = examples.weights ? examples.weights + example : nullptr;
  if (shape.loss == Loss::cross_entropy) return {static_cast<const int64_t*>(examples.y) + example, weights};
  return {static_cast<const R*>(examples.y) + example * shape.output_size(), weights};
}
template <class R, class N>
Targets<R> targets_of(const N& shape, const Examples<R>& examples, int64_t t) {
  return targets_at(shape, examples, t * examples.count);
}

// Where the gradients to examples go, from one on, counted through all tasks.
template <class R, class N>
ExampleGrads<R> grads_at(const N& shape, const ExampleGrads<R>& grads, int64_t example) {
  return {grads.dx ? grads.dx + example * shape.example_size() : nullptr, grads.dy ? grads.dy + example * shape.output_size() : nullptr,
          grads.dweights ? grads.dweights + example : nullptr};
}
// The same of `count` examples, made zeros, which the passes add to.
template <class R, class N>
ExampleGrads<R> cleared(const N& shape, const ExampleGrads<R>& grads, int64_t example, int64_t count) {
  const int64_t in = shape.example_size(), out = shape.output_size();
  const ExampleGrads<R> found = grads_at(shape, grads, example);
  if (found.dx) std::memset(found.dx, 0, size_t(count * in) * sizeof(R));
  if (found.dy) std::memset(found.dy, 0, size_t(count * out) * sizeof(R));
  if (found.dweights) std::memset(found.dweights, 0, size_t(count) * sizeof(R));
  return found;
}

// The gradient to the targets of mse, [n, outputs], -= the one to the outputs, or its tangents: rows of `ld`.
template <class R>
void subtract_rows(const R* rows, int64_t n, int64_t width, int64_t ld, R* dy) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < width; j++) dy[i * width + j] -= rows[i * ld + j];
}

// Task t's query outputs, rows of `ld`, where they are asked for.
template <class R, class N>
void store_outputs(const MetaLossCall<R, N>& c, int64_t t, const R* rows, int64_t ld) {
  const int64_t n = c.query.count, width = c.shape.output_size();
  for (int64_t i = 0; c.outputs && i < n; i++) std::memcpy(c.outputs + (t * n + i) * width, rows + i * ld, size_t(width) * sizeof(R));
}

// A network, its parameters and one pass.
template <class R, class N>
struct Evaluation {
  Evaluation(const LayoutOf<R, N>& layout, int64_t examples, bool backward, bool second_order, Scratch& scratch)
      : network(layout, examples, second_order ? examples : 0, scratch), pass(network, examples, true, second_order, scratch) {
    theta = scratch.take<R>(layout.size);
    grad = backward ? scratch.take<R>(layout.gradient) : nullptr;
  }

  // Of `count` examples of task t, from x on.
  void forward(const ParamsOf<const R, N>& params, int64_t t, const R* x, int64_t count) {
    loader.load(network.layout, params, t, theta);
    pass.load(network, x, count);
    network.forward(theta, pass);
  }

  Network<R, N> network;
  PassOf<R, N> pass;
  Loader<R, N> loader;
  R *theta, *grad;
};

// Multiply-adds of a forward pass below which a second thread does not pay: on an AMD EPYC, 2 cores, AVX-512, 2026-11-24.
constexpr int64_t kTaskGrain = 20000;

// Calls f(work, i) for every i < count, several on each thread, each thread with a Work(args..., scratch) of its own. `cost`:
// multiply-adds of a forward pass for one i.
template <class Work, class F, class... Args>
void for_each_share(int64_t count, int64_t cost, F&& f, const Args&... args) {
  Scratch measure(nullptr);
  const Work sizes(args..., measure);
  const int64_t bytes = measure.used();
  parallel_ranges(count, 1 + kTaskGrain / (1 + cost), [&](Ranges& ranges) {
    int64_t begin, end;
    if (!ranges.next(begin, end)) return;
    Scratch scratch(thread_arena(size_t(bytes)));
    Work work(args..., scratch);
    do {
      for (int64_t i = begin; i < end; i++) f(work, i);
    } while (ranges.next(begin, end));
  });
}

// Calls f(work, t) for every task t of `examples` each.
template <class Work, class N, class F, class... Args>
void for_each_task(const N& shape, int64_t examples, F&& f, const Args&... args) {
  for_each_share<Work>(shape.tasks, examples * shape.multiply_adds(), f, args...);
}

}  // namespace fastmeta::FASTMETA_ISA
