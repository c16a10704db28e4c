// One task's convolutional network on one thread: forward, backward and Hessian-vector product. Parameters, vectors and gradients
// are blocks (conv_layout.h). Gradients to z are made for one image at a time, which the two products that take them find in cache.
#pragma once
#include "conv_ending.h"
#include "conv_layout.h"
#include "convolve.h"
#include "outputs.h"

#include <vector>

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
  EndingShape ending;
};

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
  // The images of a task, [n, in, height, width], into x[0].
  void load(const ConvLayout<R>& layout, const std::vector<BlockShape<R>>& shapes, const R* images);

  int64_t n;
  R scale = 0;                         // of one example in the loss
  R *x[kMaxConvs + 1], *z[kMaxConvs];  // x[blocks]: the features
  R *d[kMaxConvs], *top[kMaxConvs];    // gradients to what block l hands on; the winners' t (conv_ending.h)
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
  void backward(const R* theta, const ConvPass<R>& pass, R* grad) const;
  // sum += H v, with the pass's forward and backward done at theta.
  void curvature(const R* theta, const R* v, const ConvPass<R>& pass, const void* y, R* sum) const;

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
  void tangents_forward(const R* theta, const R* v, const ConvPass<R>& pass) const;
  void block_tangents(int l, const R* theta, const R* v, const ConvPass<R>& pass, R* sum) const;

  R *dz[kMaxConvs], *rdz[kMaxConvs];  // of one image
  R *rx[kMaxConvs + 1], *rz[kMaxConvs], *rd[kMaxConvs];
  R *routputs, *rdoutputs, *row_sums;
  std::vector<Tangents<R>> tangents[kMaxConvs];  // of each set
};

}  // namespace fastmeta::FASTMETA_ISA
