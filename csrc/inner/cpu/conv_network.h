// One task's convolutional network on one thread: forward, backward and Hessian-vector product. Parameters, vectors and gradients
// are blocks (conv_layout.h). Gradients to z are made for one image at a time, which the two products that take them find in cache.
#pragma once
#include <cstring>
#include <vector>

#include "inner/cpu/conv_images.h"
#include "inner/cpu/conv_means.h"
#include "inner/cpu/norm_relu_pool_tangents.h"
#include "inner/cpu/outputs.h"

namespace fastmeta::FASTMETA_ISA {

// The sets of a norm: one for each image, or one.
inline int64_t sets(const ConvBlock& block, int64_t examples) { return block.norm == ConvNorm::group ? examples : 1; }
template <class T>
const T& of_sets(const std::vector<T>& list, int64_t i) {
  return list[list.size() > 1 ? size_t(i) : 0];
}

template <class R>
struct ConvNetwork;

// What a forward and a backward pass over n examples leave behind.
template <class R>
struct ConvPass {
  // Room for `examples`, the images too where the pass `owns` them.
  ConvPass(const ConvNetwork<R>& network, int64_t examples, bool owns, bool second_order, Scratch& scratch);

  void load(const ConvNetwork<R>& network, const R* images, int64_t count);  // [count, in, height, width], into x[0]
  void share_inputs(const ConvPass& other) { n = other.n, x[0] = other.x[0]; }

  int64_t n;
  R scale = 0;                         // of one example in the loss
  R *x[kMaxConvs + 1], *z[kMaxConvs];  // x[blocks]: what the last one leaves
  R* features;
  R *d[kMaxConvs], *top[kMaxConvs];  // gradients to what block l hands on; the winners' t (norm_relu_pool.h)
  R *logits, *dlogits, *probability;

  R* outputs() const { return logits; }
  R* doutputs() const { return dlogits; }

  const Norm<R>& norm(int l, int64_t i) const { return of_sets(norms[l], i); }  // of image i

  std::vector<Norm<R>> norms[kMaxConvs];  // of each set
};

// See network.h.
template <class R>
struct ConvNetwork {
  using Layout = ConvLayout<R>;
  using Pass = ConvPass<R>;
  static constexpr bool kSplits = false;  // batch norm mixes examples

  // `tangents`: of how many examples at most; 0: none.
  ConvNetwork(const ConvLayout<R>& layout, int64_t examples, int64_t tangents, Scratch& scratch);

  void forward(const R* theta, const ConvPass<R>& pass) const;
  void store_statistics(const R* theta, const ConvPass<R>& pass, R* to) const;  // [2, channels of all batch norms]
  R loss(const Targets<R>& y, ConvPass<R>& pass, R* dweights = nullptr) const { return loss(y, pass, scale_of(y, pass.n), dweights); }
  R loss(const Targets<R>& y, ConvPass<R>& pass, R scale, R* dweights = nullptr) const {
    pass.scale = scale;
    return loss_of(outputs_of(pass), y, pass.logits, pass.dlogits, row_sums, dweights);
  }
  R scale_of(const Targets<R>& y, int64_t n) const { return example_scale<R>(layout.net.loss, layout.net.outputs, y.y, n); }
  void add_weight_tangents(const ConvPass<R>& pass, const Targets<R>& y, R* dweights) const {
    FASTMETA_ISA::add_weight_tangents<R>(outputs_of(pass), y, pass.outputs(), routputs, dweights);
  }
  void backward(const R* theta, const ConvPass<R>& pass, R* grad, R* dx) const { reverse(theta, pass, pass.dlogits, grad, dx); }
  void curvature(const R* theta, const R* v, const ConvPass<R>& pass, const Targets<R>& y, R dloss, R* sum, R* dx) const;
  // Writes over the pass's backward.
  void gauss_newton(const R* theta, const R* v, const ConvPass<R>& pass, const Targets<R>& y, R* product) const;
  const R* output_tangents() const { return rdoutputs; }

  const ConvLayout<R>& layout;
  std::vector<BlockShape<R>> shapes;

 private:
  const R* of(const R* block, int l, ConvTensor tensor) const {
    const int64_t begin = layout.block[l].begin[tensor];
    return begin < 0 || !block ? nullptr : block + begin;
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
  // What the last block leaves -> the features, its own memory where they are the same; gradients to the features -> to what it leaves.
  void to_features(int64_t n, const R* x, R* features) const {
    if (dfeatures) mean_of_pixels(layout, n, x, features);
  }
  R* features_of(R* d) const { return dfeatures ? dfeatures : d; }
  void from_features(int64_t n, R* d) const {
    if (dfeatures) mean_of_pixels_back(layout, n, dfeatures, d);
  }
  void reverse(const R* theta, const ConvPass<R>& pass, const R* doutputs, R* grad, R* dx) const;
  void tangents_forward(const R* theta, const R* v, const ConvPass<R>& pass, const Targets<R>& y) const;
  void block_tangents(int l, const R* theta, const R* v, const ConvPass<R>& pass, R* sum, R* dx) const;
  void whole_tangents(int l, const R* theta, const R* v, const ConvPass<R>& pass, R* sum, R* dx) const;
  // dx [in, height, width] += the image in `dimage`, or image i of those that are there.
  void add_image(int64_t i, R* dx) const;

  // Of blocks whose kernels meet all of an image: `correlate`, onto what is there where it `adds`, and `convolve_back`, of all images.
  template <int count>
  void whole_kernel(int l, int64_t n, const ConvPair<R> (&pairs)[count], R* dw, bool adds) const;
  template <int count>
  void whole_to_x(int l, int64_t n, const ConvSource<R> (&sources)[count], R* to) const;
  // Of the gradients to what the blocks hand on, image i of block l - 1, or of the images, made zeros.
  R* cleared_image(int l, int64_t i, R* const* d) const {
    const int64_t size = l ? shapes[size_t(l - 1)].dense_size : layout.dimage_size();
    R* found = l ? d[l - 1] + i * size : dimage;
    std::memset(found, 0, size_t(size) * sizeof(R));
    return found;
  }
  bool whole(int l) const { return layout.net.block[l].whole(); }
  R* at(R* dz, int l, int64_t i) const { return whole(l) ? dz + i * shapes[size_t(l)].z_size : dz; }

  R *dz[kMaxConvs], *rdz[kMaxConvs];  // of one image; of all where their block's kernels meet all of one
  R *rx[kMaxConvs + 1], *rz[kMaxConvs], *rd[kMaxConvs];
  R *routputs, *rdoutputs, *row_sums;
  R *rfeatures, *dfeatures;  // dfeatures: null where there are no means
  R* dimage;                 // the gradient to one image, as dz, channels last, padded; null unless the layout is for such
  std::vector<Tangents<R>> tangents[kMaxConvs];  // of each set
};

template <class R>
struct NetworkOf<R, ConvNet> {
  using type = ConvNetwork<R>;
};

}  // namespace fastmeta::FASTMETA_ISA
