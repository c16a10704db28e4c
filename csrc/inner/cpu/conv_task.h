// One task's convolutional network on one thread: forward, backward and Hessian-vector product. Parameters, vectors and gradients
// are blocks (conv_layout.h). Gradients to z are made for one image at a time, which the two products that take them find in cache.
#pragma once
#include <vector>

#include "runtime/parallel.h"
#include "inner/cpu/conv_layout.h"
#include "inner/cpu/convolve.h"
#include "inner/cpu/norm_relu_pool_tangents.h"
#include "inner/cpu/outputs.h"

namespace fastmeta::FASTMETA_ISA {

// A block's images in memory: x with its zeros around, z, the gradient d to what it hands on, dense; and gradients to z, in the
// midst of as many zeros as the convolution that takes them to x needs.
template <class R>
struct BlockShape {
  BlockShape(const ConvLayout<R>& layout, int l);

  int64_t pixels;  // of z
  int64_t x_row, x_size, z_size, out_row, out_size, dense_size, dz_size;
  int64_t x_first, dz_first, out_first;  // the first number that is no zero
  ConvShape forward, to_x;               // to_x: from dz to the gradient to x, dense
  ImageShape image;
};

// Numbers of so many images.
inline int64_t image_numbers(const ConvNet& net, int64_t examples) {
  return examples * net.block[0].in * net.block[0].height * net.block[0].width;
}
template <class R>
const void* targets_of(const ConvNet& net, const ConvExamples<R>& examples, int64_t t) {
  return targets_of(net.loss, net.outputs, examples, t);
}
// Where the gradients to the examples of task t go: zeros, which the passes add to.
template <class R>
ConvExampleGrads<R> cleared(const ConvNet& net, const ConvExampleGrads<R>& grads, int64_t count, int64_t t) {
  const int64_t numbers = image_numbers(net, count), outputs = count * net.outputs;
  const ConvExampleGrads<R> found{grads.dx ? grads.dx + t * numbers : nullptr, grads.dy ? grads.dy + t * outputs : nullptr};
  if (found.dx) std::memset(found.dx, 0, size_t(numbers) * sizeof(R));
  if (found.dy) std::memset(found.dy, 0, size_t(outputs) * sizeof(R));
  return found;
}
// The gradient to the targets of mse, [n, outputs], -= the one to the outputs, or its tangents: padded rows.
template <class R>
void subtract_rows(const ConvLayout<R>& layout, int64_t n, const R* rows, R* dy) {
  const int64_t width = layout.net.outputs;
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < width; j++) dy[i * width + j] -= rows[i * layout.outputs + j];
}

// The sets of a norm: one for each image, or one.
inline int64_t sets(const ConvBlock& block, int64_t examples) { return block.norm == ConvNorm::group ? examples : 1; }
template <class T>
const T& of_sets(const std::vector<T>& list, int64_t i) {
  return list[list.size() > 1 ? size_t(i) : 0];
}

// What a forward and a backward pass over n examples leave behind.
template <class R>
struct ConvPass {
  ConvPass(const ConvLayout<R>& layout, const std::vector<BlockShape<R>>& shapes, int64_t examples, Scratch& scratch);
  // The images of task t, [T, n, in, height, width], into x[0].
  void load(const ConvLayout<R>& layout, const std::vector<BlockShape<R>>& shapes, const R* images, int64_t t);

  int64_t n;
  R scale = 0;                         // of one example in the loss
  R *x[kMaxConvs + 1], *z[kMaxConvs];  // x[blocks]: the features
  R *d[kMaxConvs], *top[kMaxConvs];    // gradients to what block l hands on; the winners' t (norm_relu_pool.h)
  R *outputs, *doutputs, *probability;

  const Norm<R>& norm(int l, int64_t i) const { return of_sets(norms[l], i); }  // of image i

  std::vector<Norm<R>> norms[kMaxConvs];  // of each set
};

template <class R>
struct ConvTask {
  // `tangents`: of how many examples at most; 0: none.
  ConvTask(const ConvLayout<R>& layout, int64_t examples, int64_t tangents, Scratch& scratch);

  void forward(const R* theta, const ConvPass<R>& pass) const;
  R loss(const void* y, ConvPass<R>& pass) const;
  // grad = J' doutputs [n, outputs, padded]; dx [n, in, height, width], where not null, += its part for the images.
  void backward(const R* theta, const ConvPass<R>& pass, const R* doutputs, R* grad, R* dx) const;
  // sum += H v, dx += d <v, gradient> / d images, where not null; with the pass's forward and backward done at theta.
  void curvature(const R* theta, const R* v, const ConvPass<R>& pass, const void* y, R* sum, R* dx) const;
  // product = J' H_out J v, with the pass's forward and loss done at theta; writes over its backward.
  void gauss_newton(const R* theta, const R* v, const ConvPass<R>& pass, const void* y, R* product) const;
  // After curvature: the tangents of the gradient to the outputs, [n, outputs], padded.
  const R* output_tangents() const { return rdoutputs; }

  const ConvLayout<R>& layout;
  std::vector<BlockShape<R>> shapes;

 private:
  const R* of(const R* block, int l, ConvTensor tensor) const {
    const int64_t begin = layout.block[l].begin[tensor];
    return begin < 0 ? nullptr : block + begin;
  }
  R* of(R* block, int l, ConvTensor tensor) const { return const_cast<R*>(of(static_cast<const R*>(block), l, tensor)); }
  // The bias, but where batch norm takes it away with the mean: there it is lost.
  bool loses_bias(int l) const { return layout.net.block[l].norm == ConvNorm::batch; }
  template <class P>
  P* bias_of(P* block, int l) const {
    return loses_bias(l) ? nullptr : of(block, l, kBias);
  }
  template <class P>
  P* lost_bias_of(P* block, int l) const {
    return loses_bias(l) ? of(block, l, kBias) : nullptr;
  }
  bool has_norm(int l) const { return layout.net.block[l].norm != ConvNorm::none; }
  int64_t pixels(int l, const ConvPass<R>& pass) const {  // of a set
    return shapes[size_t(l)].pixels * (layout.net.block[l].norm == ConvNorm::group ? 1 : pass.n);
  }
  Outputs<R> outputs_of(const ConvPass<R>& pass) const {
    return {layout.net.loss, pass.n, layout.net.outputs, layout.outputs, pass.scale, pass.probability};
  }
  void tangents_forward(const R* theta, const R* v, const ConvPass<R>& pass, const void* y) const;
  void block_tangents(int l, const R* theta, const R* v, const ConvPass<R>& pass, R* sum, R* dx) const;
  // dx [in, height, width] += the image in `dimage`.
  void add_image(R* dx) const;

  R *dz[kMaxConvs], *rdz[kMaxConvs];  // of one image
  R *rx[kMaxConvs + 1], *rz[kMaxConvs], *rd[kMaxConvs];
  R *routputs, *rdoutputs, *row_sums;
  R* dimage;                                     // the gradient to one image, channels last, padded; null unless the layout is for such
  std::vector<Tangents<R>> tangents[kMaxConvs];  // of each set
};

// Calls f(work, t) for every task t, several on each thread, each thread with a Work(args..., scratch) of its own.
template <class Work, class F, class... Args>
void for_each_task(const ConvNet& net, F&& f, const Args&... args) {
  Scratch measure(nullptr);
  const Work sizes(args..., measure);
  parallel_for(net.tasks, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(thread_arena(size_t(measure.used())));
    Work work(args..., scratch);
    for (int64_t t = begin; t < end; t++) f(work, t);
  });
}

}  // namespace fastmeta::FASTMETA_ISA
