// mlp_hvp, and the backward of mlp_grad: one task on a thread, or where there are few tasks a part of its examples. 8 n P
// multiply-adds (5 n P Gauss-Newton), for the first layer 3 n P: the gradient of the weights is not needed.
#include <vector>

#include "runtime/cpu/kernels.h"
#include "inner/cpu/mlp_task.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

constexpr int64_t kFewTasks = 8, kPart = 32;  // parts of tasks in all; examples in a part, at least

// Into how many parts a task's examples are split: the same for any number of threads, so that sums are too.
int64_t parts_of(const MlpShape& shape, int64_t n) {
  int64_t parts = 1;
  while (shape.tasks * parts * 2 <= kFewTasks && n / (2 * parts) >= kPart && forward_cost(shape, n) / (2 * parts) >= kTaskGrain) parts *= 2;
  return parts;
}

template <class R>
struct Work {
  Work(const MlpCurvature<R>& c, const Layout<R>& layout, int64_t examples, Scratch& scratch)
      : task(c.shape, layout, examples, true, scratch), pass(c.shape, layout, examples, true, true, scratch) {
    theta = scratch.take<R>(layout.size);
    vec = scratch.take<R>(layout.size);
    product = scratch.take<R>(layout.gradient);
    dx = c.grads.dx ? scratch.take<R>(examples * layout.ld[0]) : nullptr;
  }

  Task<R> task;
  Pass<R> pass;
  Loader<R> loader;
  R *theta, *vec, *product, *dx;
  int64_t vec_task = -1;  // whose vector is in vec
};

// Examples [begin, end) of task t; their part of the product into `product`.
template <class R>
void differentiate(const MlpCurvature<R>& c, const Layout<R>& layout, Work<R>& w, int64_t t, int64_t begin, int64_t end, R* product) {
  const int64_t n = c.examples.count, in = c.shape.width[0], out = c.shape.width[c.shape.layers], count = end - begin;
  const void* y = targets_of(c.shape, c.examples, t, begin);
  w.loader.load(layout, c.params, t, w.theta);
  if (w.vec_task != t) load_block(layout, c.vectors, t, w.vec);
  w.vec_task = t;
  w.pass.load(c.shape, {count, c.examples.x + (t * n + begin) * in}, 0);
  w.task.forward(w.theta, w.pass);
  w.task.loss(y, w.pass, example_scale<R>(c.shape, targets_of(c.shape, c.examples, t), n));
  if (!c.gauss_newton) w.task.backward(w.theta, w.pass, nullptr);
  std::memset(product, 0, size_t(layout.gradient) * sizeof(R));
  w.task.curvature(w.theta, w.vec, w.pass, y, c.dloss ? c.dloss[t] : R(0), c.gauss_newton, product);
  if (c.grads.dy) store_negated(w.task.output_tangents(), count, out, layout.ld[layout.layers], c.grads.dy + (t * n + begin) * out);
  if (!c.grads.dx) return;
  std::memset(w.dx, 0, size_t(count * layout.ld[0]) * sizeof(R));
  w.task.input_tangent(w.theta, w.vec, w.pass, w.dx);
  store_rows(w.dx, count, in, c.grads.dx + (t * n + begin) * in, layout.ld[0]);
}

}  // namespace

template <class R>
void mlp_hvp(const MlpCurvature<R>& c) {
  const int64_t n = c.examples.count, parts = parts_of(c.shape, n), size = (n + parts - 1) / parts;
  const Layout<R> layout(c.shape, c.params, c.grads.dx);
  if (parts == 1)
    return for_each_task<Work<R>>(
        c.shape, n,
        [&](Work<R>& w, int64_t t) {
          differentiate(c, layout, w, t, 0, n, w.product);
          store_block(layout, w.product, c.dparams, t);
        },
        c, layout, n);
  std::vector<R> products(size_t(c.shape.tasks * parts * layout.gradient));
  for_each_share<Work<R>>(
      c.shape.tasks * parts, forward_cost(c.shape, size),
      [&](Work<R>& w, int64_t i) {
        const int64_t begin = i % parts * size;
        differentiate(c, layout, w, i / parts, begin, least(n, begin + size), products.data() + i * layout.gradient);
      },
      c, layout, size);
  for (int64_t t = 0; t < c.shape.tasks; t++) {
    R* sum = products.data() + t * parts * layout.gradient;
    for (int64_t part = 1; part < parts; part++) {
      const R* more = sum + part * layout.gradient;
      for (int64_t i = 0; i < layout.gradient; i++) sum[i] += more[i];
    }
    store_block(layout, sum, c.dparams, t);
  }
}

template void mlp_hvp(const MlpCurvature<float>&);
template void mlp_hvp(const MlpCurvature<double>&);

}  // namespace fastmeta::FASTMETA_ISA
