// One task's MLP on one thread: forward, backward and Hessian-vector product, in scratch memory that stays in cache.
// Parameters, vectors and gradients are blocks (mlp_layout.h). About 3 n P multiply-adds for a gradient, 6 n P for a
// Hessian-vector product.
#pragma once
#include "inner/cpu/mlp_activation.h"
#include "inner/cpu/mlp_layout.h"
#include "inner/cpu/outputs.h"
#include "inner/cpu/residual_norm.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
struct MlpNetwork;

// What a forward and a backward pass over n examples leave behind. Matrices [n, width], rows padded.
template <class R>
struct MlpPass {
  // Room for `examples`, their inputs too where the pass `owns` them, and for what the tangents of sloped activations need.
  MlpPass(const MlpNetwork<R>& network, int64_t examples, bool owns, bool second_order, Scratch& scratch);

  void load(const MlpNetwork<R>& network, const R* inputs, int64_t count);  // [count, in]
  void share_inputs(const MlpPass& other) { n = other.n, inputs = other.inputs; }
  const R* input(int l) const { return l ? x[l] : inputs; }  // of layer l
  R* outputs() const { return normed ? normed : x[last]; }
  R* doutputs() const { return dnormed ? dnormed : d[last]; }
  ResidualNorm<R> norm(const MlpNetwork<R>& network) const;  // x[last], which becomes xhat; its tangents are the network's

  int last;  // layer
  int64_t n = 0;
  const R* inputs = nullptr;                        // [n, in], rows padded
  R scale = 0;                                      // of one example (mse: of one number) in the loss
  R *x[kMaxLayers + 1], *d[kMaxLayers + 1];         // x_l, d_l = dloss / dz_l; x[0]: room for the inputs
  R *slope[kMaxLayers + 1], *bend[kMaxLayers + 1];  // sloped activations': first derivative, dloss / dx times the second
  R* probability;                                   // cross_entropy: [n, out]
  R *normed = nullptr, *dnormed = nullptr;          // outputs of a residual block, d of them; null: x, d of the last layer
  R* r = nullptr;                                   // its norm's, [n]
};

// See network.h.
template <class R>
struct MlpNetwork {
  using Layout = MlpLayout<R>;
  using Pass = MlpPass<R>;
  static constexpr bool kSplits = true;  // an example's outputs depend on it alone

  // `tangents`: of how many examples at most; 0: none.
  MlpNetwork(const MlpLayout<R>& layout, int64_t examples, int64_t tangents, Scratch& scratch);

  void forward(const R* theta, MlpPass<R>& pass) const;
  void store_statistics(const R*, const MlpPass<R>&, R*) const {}  // it has none
  R loss(const Targets<R>& y, MlpPass<R>& pass, R* dweights = nullptr) const { return loss(y, pass, scale_of(y, pass.n), dweights); }
  // With the scale of a batch that these are a part of.
  R loss(const Targets<R>& y, MlpPass<R>& pass, R scale, R* dweights = nullptr) const {
    pass.scale = scale;
    return loss_of(outputs(pass), y, pass.outputs(), pass.doutputs(), row_sums, dweights);
  }
  R scale_of(const Targets<R>& y, int64_t n) const { return example_scale<R>(shape.loss, shape.output_size(), y.y, n); }
  void add_weight_tangents(const MlpPass<R>& pass, const Targets<R>& y, R* dweights) const {
    FASTMETA_ISA::add_weight_tangents<R>(outputs(pass), y, pass.outputs(), output_directions(), dweights);
  }
  void backward(const R* theta, MlpPass<R>& pass, R* grad, R* dx) const;  // grad: a block, or null
  void curvature(const R* theta, const R* v, const MlpPass<R>& pass, const Targets<R>& y, R dloss, R* sum, R* dx) const;
  void gauss_newton(const R* theta, const R* v, const MlpPass<R>& pass, const Targets<R>& y, R* product) const;

  // From output_directions() (tangents of the outputs) to output_tangents() (of d of the last layer): [n, padded out].
  void output_tangent(const MlpPass<R>& pass, const Targets<R>& y) const {
    loss_tangent(outputs(pass), y, output_directions(), rnormed ? rdnormed : rd[shape.layers]);
  }
  R* output_directions() const { return rnormed ? rnormed : rx[shape.layers]; }
  const R* output_tangents() const { return rnormed ? rdnormed : rd[shape.layers]; }

  MlpShape shape;
  const MlpLayout<R>& layout;

 private:
  friend struct MlpPass<R>;

  Outputs<R> outputs(const MlpPass<R>& pass) const {
    const int L = shape.layers;
    return {shape.loss, pass.n, shape.width[L], layout.ld[L], pass.scale, pass.probability};
  }
  void reverse_tangents(const R* theta, const R* v, const MlpPass<R>& pass, bool gauss_newton, R* sum) const;
  template <int count>
  void add_input_gradient(const MlpPass<R>& pass, const Product<R> (&list)[count], R* dx) const;
  void tangents_forward(const R* theta, const R* v, const MlpPass<R>& pass, bool gauss_newton) const;
  void bend_tangents(const MlpPass<R>& pass, int l, bool gauss_newton) const;
  void add_gradient(const Layer& a, int l, const MlpPass<R>& pass, R* sum, bool gauss_newton) const;
  void add_residual(const R* d, int64_t n, R* dx) const;

  R *rx[kMaxLayers + 1], *rd[kMaxLayers + 1];                // tangents of x, of d; rx of a sloped layer: of z
  R *rnormed = nullptr, *rdnormed = nullptr, *rr = nullptr;  // of a residual block: tangents of outputs, of d of them, of r over r
  R *row_sums, *dinputs;                                     // [n]; [n, padded in], where input gradients are asked for and rows are padded
  bool sloped;
};

template <class R>
struct NetworkOf<R, MlpShape> {
  using type = MlpNetwork<R>;
};

}  // namespace fastmeta::FASTMETA_ISA
