// One task's MLP on one thread: forward, backward and Hessian-vector product, in a scratch memory that stays in cache.
//
// Everything is copied into matrices whose rows are padded to whole vectors (matmul.h); weights are kept both ways round, so
// that the three products of a layer, x W', dz W and dz' x, all run along contiguous rows. Padding columns are never read as
// results. About 3 n P multiply-adds for a gradient, 6 n P more for a Hessian-vector product.
#pragma once
#include "../arena.h"
#include "../mlp.h"
#include "../parallel.h"
#include "matmul.h"

namespace fastmeta::FASTMETA_ISA {

constexpr int64_t kTaskGrain = 20000;  // multiply-adds of a forward pass below which a second thread does not pay

// Hands out aligned pieces of one memory; with a null base it only counts.
class Scratch {
 public:
  explicit Scratch(void* base) : base_(static_cast<char*>(base)) {}
  template <class R>
  R* take(int64_t count) {
    char* piece = base_ ? base_ + used_ : nullptr;
    used_ += (count * int64_t(sizeof(R)) + 63) / 64 * 64;
    return reinterpret_cast<R*>(piece);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// Matrices in the form of the parameters: w [out, padded in], wt [in, padded out] (where kept), b [padded out].
template <class R>
struct Matrices {
  R *w[kMaxLayers], *wt[kMaxLayers], *b[kMaxLayers];
};

template <class R>
struct Task {
  // `examples`: the most that will be loaded. With `second_order`, room for tangents and a cotangent too. `kept`: how many
  // numbers the caller keeps in `this->kept`.
  Task(const MlpShape& shape, int64_t examples, bool second_order, int64_t kept, Scratch& scratch);

  void load_params(const MlpParams<const R>& params, int64_t task);
  void load_flat(const R* flat);          // [P]: W_1, b_1, W_2, ...
  void store_flat(R* flat) const;
  void load_vectors(const MlpParams<const R>& vectors, int64_t task);
  void load_cotangent(const MlpParams<const R>& cotangent, int64_t task);
  void take_cotangent();                   // cotangent = grad
  void load_inputs(const R* x, int64_t count);
  void refresh(Matrices<R>& m) const;      // wt from w

  void forward();                          // x -> a[1..L], slopes
  R output_gradient(const void* y);        // the mean loss; d[L]
  void set_output_gradient(const R* dout); // d[L] = dout [n, out]
  void backward();                         // d, grad
  void curvature(const void* y, bool gauss_newton = false);  // after backward (or not): H v (or J' H_out J v) in `hv`, v in `vec`

  // What backward and curvature know of the inputs and mse targets: out = scale * that + (add ? out : 0)
  void store_dx(R* out, R scale, bool add);
  void store_dy(R* out, R scale, bool add) const;
  void store_rdx(R* out, R scale, bool add);
  void store_rdy(R* out, R scale, bool add) const;
  void store_outputs(R* out) const;

  int64_t in() const { return s.width[0]; }
  int64_t out() const { return s.width[s.layers]; }

  MlpShape s;
  int64_t n = 0, counted = 0, ld[kMaxLayers + 1];
  bool has_bias[kMaxLayers] = {};
  Matrices<R> theta, grad, vec, hv, cotangent;
  R *a[kMaxLayers + 1], *slope[kMaxLayers + 1], *slope2[kMaxLayers + 1];  // x_l, activation', activation''
  R *d[kMaxLayers + 1], *bend[kMaxLayers + 1];                            // dL/dz_l; dL/dx_l * activation''
  R *rz[kMaxLayers + 1], *ra[kMaxLayers + 1], *rd[kMaxLayers + 1];        // tangents of z_l, x_l, dL/dz_l
  R *probability, *input_gradient;                                        // [n, out], [n, in], rows padded
  R* kept;

 private:
  void load_matrices(Matrices<R>& m, const MlpParams<const R>& params, int64_t task, bool is_theta);
  bool smooth() const { return s.activation != Activation::relu && s.activation != Activation::identity; }
};

template <class R>
Matrices<R> take_matrices(const MlpShape& s, const int64_t* ld, bool transposed, Scratch& scratch);

// Elements of W_1, b_1, W_2, ... of one task.
template <class R>
int64_t count_params(const MlpShape& s, const MlpParams<R>& params) {
  int64_t total = 0;
  for (int l = 0; l < s.layers; l++) total += s.width[l + 1] * (s.width[l] + (params.bias[l] ? 1 : 0));
  return total;
}

// Calls f(task, t) for every task t, several on each thread, with the thread's scratch memory.
template <class R, class F>
void for_each_task(const MlpShape& s, int64_t examples, bool second_order, int64_t kept, F&& f) {
  Scratch measure(nullptr);
  Task<R> sizes(s, examples, second_order, kept, measure);
  int64_t work = 1;
  for (int l = 0; l < s.layers; l++) work += examples * s.width[l] * s.width[l + 1];
  const int64_t bytes = measure.used();
  parallel_for(s.tasks, 1 + kTaskGrain / work, [&](int64_t begin, int64_t end) {
    Scratch scratch(thread_arena(size_t(bytes)));
    Task<R> task(s, examples, second_order, kept, scratch);
    for (int64_t t = begin; t < end; t++) f(task, t);
  });
}

// Calls f(tensor index, row of the padded matrix or bias, first element, columns) for every row of the parameters that exist.
template <class R, class F>
void for_each_row(const Task<R>& task, F&& f) {
  for (int l = 0; l < task.s.layers; l++) {
    const int64_t rows = task.s.width[l + 1], columns = task.s.width[l];
    for (int64_t i = 0; i < rows; i++) f(2 * l, l, i * task.ld[l], i * columns, columns);
    if (task.has_bias[l]) f(2 * l + 1, l, int64_t(0), int64_t(0), rows);
  }
}

// The targets of task t.
template <class R>
const void* targets_of(const MlpShape& s, const MlpExamples<R>& examples, int64_t t) {
  if (s.loss == Loss::cross_entropy) return static_cast<const int64_t*>(examples.y) + t * examples.count;
  return static_cast<const R*>(examples.y) + t * examples.count * s.width[s.layers];
}

// Where the gradients to the examples of task t go.
template <class R>
MlpExampleGrads<R> examples_of(const MlpShape& s, const MlpExampleGrads<R>& grads, int64_t count, int64_t t) {
  return {grads.dx ? grads.dx + t * count * s.width[0] : nullptr,
          grads.dy ? grads.dy + t * count * s.width[s.layers] : nullptr};
}

// out[task] = m, where out has room: gradients of one task, [T, ...].
template <class R>
void store_params(const Task<R>& task, const Matrices<R>& m, const MlpParams<R>& out, int64_t index) {
  for_each_row(task, [&](int tensor, int l, int64_t from, int64_t to, int64_t columns) {
    R* base = tensor % 2 ? out.bias[l] : out.weight[l];
    if (!base) return;
    const R* row = (tensor % 2 ? m.b[l] : m.w[l]) + from;
    R* target = base + index * (tensor % 2 ? out.bias_stride[l] : out.weight_stride[l]) + to;
    for (int64_t j = 0; j < columns; j++) target[j] = row[j];
  });
}

}  // namespace fastmeta::FASTMETA_ISA
