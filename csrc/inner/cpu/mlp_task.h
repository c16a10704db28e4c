// One task's MLP on one thread: forward, backward and Hessian-vector product, in scratch memory that stays in cache.
// Parameters, vectors and gradients are blocks (mlp_layout.h). About 3 n P multiply-adds for a gradient, 6 n P for a
// Hessian-vector product.
#pragma once
#include "runtime/parallel.h"
#include "inner/cpu/mlp_activation.h"
#include "inner/cpu/mlp_layout.h"
#include "inner/cpu/outputs.h"

namespace fastmeta::FASTMETA_ISA {

// What a forward and a backward pass over n examples leave behind. Matrices [n, width], rows padded.
template <class R>
struct Pass {
  // Room for `examples`, the inputs too where the pass `owns` them, and for what the tangents of smooth activations need.
  Pass(const MlpShape& shape, const Layout<R>& layout, int64_t examples, bool owns, bool second_order, Scratch& scratch);

  void load(const MlpShape& shape, const MlpExamples<R>& examples, int64_t t);  // the inputs of task t
  const R* input(int l) const { return l ? x[l] : inputs; }                     // of layer l

  int64_t n = 0;
  const R* inputs = nullptr;                        // [n, in], rows padded
  R scale = 0;                                      // of one example (mse: of one number) in the loss
  R *x[kMaxLayers + 1], *d[kMaxLayers + 1];         // x_l, d_l = dloss / dz_l; x[0]: room for the inputs
  R *slope[kMaxLayers + 1], *bend[kMaxLayers + 1];  // smooth activations': first derivative, dloss / dx times the second
  R* probability;                                   // cross_entropy: [n, out]
};

template <class R>
R example_scale(const MlpShape& shape, const void* y, int64_t n) {
  return example_scale<R>(shape.loss, shape.width[shape.layers], y, n);
}

template <class R>
struct Task {
  Task(const MlpShape& shape, const Layout<R>& layout, int64_t examples, bool tangents, Scratch& scratch);

  void forward(const R* theta, Pass<R>& pass) const;
  // The mean loss of the outputs, and d of the last layer. With a `scale`, pass.scale of a batch that these are a part of.
  R loss(const void* y, Pass<R>& pass) const { return loss(y, pass, example_scale<R>(shape, y, pass.n)); }
  R loss(const void* y, Pass<R>& pass, R scale) const {
    pass.scale = scale;
    return loss_of(outputs(pass), y, pass.x[shape.layers], pass.d[shape.layers], row_sums);
  }
  // d of every layer and, where it is not null, the gradient, a block.
  void backward(const R* theta, Pass<R>& pass, R* grad) const;
  // sum += H v + dloss grad, with the pass's forward and backward done at theta; rd of every layer. Gauss-Newton: J' H_out J v.
  void curvature(const R* theta, const R* v, const Pass<R>& pass, const void* y, R dloss, bool gauss_newton, R* sum) const;

  // From output_directions() (tangents of the outputs) to output_tangents() (of d of the last layer): [n, padded out].
  void output_tangent(const Pass<R>& pass, const void* y) const { loss_tangent(outputs(pass), y, rx[shape.layers], rd[shape.layers]); }
  R* output_directions() const { return rx[shape.layers]; }
  const R* output_tangents() const { return rd[shape.layers]; }

  // dx [n, padded in] = the gradient to the inputs; += that of what curvature() differentiated, after it.
  void input_gradient(const R* theta, const Pass<R>& pass, R* dx) const;
  void input_tangent(const R* theta, const R* v, const Pass<R>& pass, R* dx) const;

  MlpShape shape;
  const Layout<R>& layout;

 private:
  Outputs<R> outputs(const Pass<R>& pass) const {
    const int L = shape.layers;
    return {shape.loss, pass.n, shape.width[L], layout.ld[L], pass.scale, pass.probability};
  }
  void tangents_forward(const R* theta, const R* v, const Pass<R>& pass, bool gauss_newton) const;
  void bend_tangents(const Pass<R>& pass, int l, bool gauss_newton) const;
  void add_gradient(const Layer& a, int l, const Pass<R>& pass, R* sum, bool gauss_newton) const;

  R *rx[kMaxLayers + 1], *rd[kMaxLayers + 1];  // tangents of x, of d; rx of a smooth layer: of z
  R* row_sums;                                 // [n]
  bool smooth;
};

// out [n, width] = -rows.
template <class R>
void store_negated(const R* rows, int64_t n, int64_t width, int64_t ld, R* out) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < width; j++) out[i * width + j] = -rows[i * ld + j];
}

constexpr int64_t kTaskGrain = 20000;  // multiply-adds of a forward pass below which a second thread does not pay

// Calls f(work, i) for every i < count, several on each thread, each thread with a Work(args..., scratch) of its own. `cost`:
// multiply-adds of a forward pass for one i.
template <class Work, class F, class... Args>
void for_each_share(int64_t count, int64_t cost, F&& f, const Args&... args) {
  Scratch measure(nullptr);
  Work sizes(args..., measure);
  const int64_t bytes = measure.used();
  parallel_for(count, 1 + kTaskGrain / (1 + cost), [&](int64_t begin, int64_t end) {
    Scratch scratch(thread_arena(size_t(bytes)));
    Work work(args..., scratch);
    for (int64_t i = begin; i < end; i++) f(work, i);
  });
}

// Multiply-adds of a forward pass.
inline int64_t forward_cost(const MlpShape& shape, int64_t examples) {
  int64_t cost = 0;
  for (int l = 0; l < shape.layers; l++) cost += examples * shape.width[l] * shape.width[l + 1];
  return cost;
}

// Calls f(work, t) for every task t.
template <class Work, class F, class... Args>
void for_each_task(const MlpShape& shape, int64_t examples, F&& f, const Args&... args) {
  for_each_share<Work>(shape.tasks, forward_cost(shape, examples), f, args...);
}

template <class R>
const void* targets_of(const MlpShape& s, const MlpExamples<R>& examples, int64_t t, int64_t first = 0) {
  return targets_of(s.loss, s.width[s.layers], examples, t, first);
}

// Where the gradients to the examples of task t go.
template <class R>
MlpExampleGrads<R> examples_of(const MlpShape& s, const MlpExampleGrads<R>& grads, int64_t count, int64_t t) {
  return {grads.dx ? grads.dx + t * count * s.width[0] : nullptr, grads.dy ? grads.dy + t * count * s.width[s.layers] : nullptr};
}

// The inputs of task t with padded rows: as they are, or copied into `room`.
template <class R>
const R* load_inputs(const MlpShape& s, const MlpExamples<R>& examples, int64_t t, R* room) {
  const int64_t in = s.width[0], ld = padded<R>(in);
  const R* x = examples.x + t * examples.count * in;
  if (in == ld) return x;
  load_rows(x, examples.count, in, room, ld);
  return room;
}

}  // namespace fastmeta::FASTMETA_ISA
