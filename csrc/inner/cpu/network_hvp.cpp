// mlp_hvp, conv_hvp, and the backward of mlp_grad and conv_grad: one task on a thread, or where there are few tasks a part of its
// examples. For an MLP 8 n P multiply-adds (5 n P Gauss-Newton), for its first layer 3 n P: the gradient of the weights is not needed.
#include <vector>

#include "inner/cpu/conv_network.h"
#include "inner/cpu/mlp_network.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

// Parts of tasks in all, and examples in a part, at least: enough for 8 threads, long enough for a product (not tuned further).
constexpr int64_t kFewTasks = 8, kPart = 32;

// Into how many parts a task's examples are split: the same for any number of threads, so that sums are too.
template <class R, class N>
int64_t parts_of(const N& shape, int64_t n) {
  int64_t parts = 1;
  const int64_t cost = n * shape.multiply_adds();
  while (Network<R, N>::kSplits && shape.tasks * parts * 2 <= kFewTasks && n / (2 * parts) >= kPart && cost / (2 * parts) >= kTaskGrain)
    parts *= 2;
  return parts;
}

template <class R, class N>
struct Work : Evaluation<R, N> {
  Work(const LayoutOf<R, N>& layout, int64_t examples, Scratch& scratch) : Evaluation<R, N>(layout, examples, true, true, scratch) {
    vec = scratch.take<R>(layout.size);
  }

  R* vec;
  int64_t vec_task = -1;  // whose vector is in vec
};

// Examples [begin, end) of task t; their part of the product into `product`.
template <class R, class N>
void differentiate(const CurvatureCall<R, N>& c, Work<R, N>& w, int64_t t, int64_t begin, int64_t end, R* product) {
  const LayoutOf<R, N>& layout = w.network.layout;
  const int64_t n = c.examples.count, first = t * n + begin, count = end - begin;
  const Targets<R> y = targets_at(c.shape, c.examples, first);
  if (w.vec_task != t) load_block(layout, c.vectors, t, w.vec);
  w.vec_task = t;
  w.forward(c.params, t, c.examples.x + first * c.shape.example_size(), count);
  const ExampleGrads<R> grads = cleared(c.shape, c.grads, first, count);
  w.network.loss(y, w.pass, w.network.scale_of(targets_of(c.shape, c.examples, t), n), grads.dweights);
  if (c.gauss_newton) return w.network.gauss_newton(w.theta, w.vec, w.pass, y, product);
  const R dloss = c.dloss ? c.dloss[t] : R(0);
  std::memset(product, 0, size_t(layout.gradient) * sizeof(R));
  w.network.backward(w.theta, w.pass, nullptr, nullptr);
  w.network.curvature(w.theta, w.vec, w.pass, y, dloss, product, grads.dx);
  if (grads.dy) subtract_rows(w.network.output_tangents(), count, c.shape.output_size(), layout.padded_outputs(), grads.dy);
  if (!grads.dweights) return;
  for (int64_t i = 0; i < count; i++) grads.dweights[i] *= dloss;
  w.network.add_weight_tangents(w.pass, y, grads.dweights);
}

}  // namespace

template <class R, class N>
void network_hvp(const CurvatureCall<R, N>& c) {
  const int64_t n = c.examples.count, parts = parts_of<R>(c.shape, n), size = (n + parts - 1) / parts;
  const LayoutOf<R, N> layout(c.shape, c.params, c.grads.dx);
  if (parts == 1)
    return for_each_task<Work<R, N>>(
        c.shape, n,
        [&](Work<R, N>& w, int64_t t) {
          differentiate(c, w, t, 0, n, w.grad);
          store_block(layout, w.grad, c.dparams, t);
        },
        layout, n);
  std::vector<R> products(size_t(c.shape.tasks * parts * layout.gradient));
  for_each_share<Work<R, N>>(
      c.shape.tasks * parts, size * c.shape.multiply_adds(),
      [&](Work<R, N>& w, int64_t i) {
        const int64_t begin = i % parts * size;
        differentiate(c, w, i / parts, begin, least(n, begin + size), products.data() + i * layout.gradient);
      },
      layout, size);
  for (int64_t t = 0; t < c.shape.tasks; t++) {
    R* sum = products.data() + t * parts * layout.gradient;
    for (int64_t part = 1; part < parts; part++) {
      const R* more = sum + part * layout.gradient;
      for (int64_t i = 0; i < layout.gradient; i++) sum[i] += more[i];
    }
    store_block(layout, sum, c.dparams, t);
  }
}

#define INSTANTIATE(R, N) template void network_hvp(const CurvatureCall<R, N>&);
INSTANTIATE(float, MlpShape)
INSTANTIATE(double, MlpShape)
INSTANTIATE(float, ConvNet)
INSTANTIATE(double, ConvNet)

}  // namespace fastmeta::FASTMETA_ISA
