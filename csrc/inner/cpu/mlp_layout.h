// Where the parameters of one task lie in a thread's memory: a block, in which W of a layer lies as rows [out, in], as
// columns [in, out], or as both, rows padded to whole vectors (matmul.h). The outputs of a layer take the columns, or the rows
// where there are few outputs (dots); gradients to its inputs take the rows. The first of the two is the form of gradients;
// the others follow in the block, made from the first by flip().
#pragma once
#include "inner/mlp.h"
#include "inner/cpu/matmul.h"
#include "inner/cpu/network.h"

namespace fastmeta::FASTMETA_ISA {

struct Layer {
  int64_t in, out;        // widths
  bool dots;              // whether the outputs come by dots
  bool by_rows;           // whether gradients are rows
  int64_t rows, columns;  // where W [out, in] and W' [in, out] begin in a block, -1: not kept
  int64_t bias;           // where b begins, -1: none

  int64_t weight() const { return by_rows ? rows : columns; }  // in the form of gradients
  int64_t height() const { return by_rows ? out : in; }
  int64_t width() const { return by_rows ? in : out; }
};

template <class R>
struct MlpLayout {
  MlpLayout(const MlpShape& shape, const MlpParams<const R>& params, bool input_gradients);

  // Calls f(tensor, begin, rows, columns) for every tensor of the parameters in the form of gradients; tensor 2l is W, 2l + 1 b;
  // 2L is gamma, 2L + 1 beta.
  template <class F>
  void for_each_tensor(F&& f) const {
    for (int l = 0; l < layers; l++) {
      f(2 * l, layer[l].weight(), layer[l].height(), layer[l].width());
      if (layer[l].bias >= 0) f(2 * l + 1, layer[l].bias, int64_t(1), layer[l].out);
    }
    if (gamma >= 0) f(2 * layers, gamma, int64_t(1), shape.output_size());
    if (beta >= 0) f(2 * layers + 1, beta, int64_t(1), shape.output_size());
  }

  int64_t padded_outputs() const { return ld[layers]; }

  MlpShape shape;
  int layers;
  Layer layer[kMaxLayers];
  int64_t ld[kMaxLayers + 1];     // padded widths
  int64_t gamma = -1, beta = -1;  // where a residual block's begin, -1: none
  int64_t gradient = 0;           // numbers of a block of gradients
  int64_t size = 0;               // of a block with both forms
  bool shared;                    // whether all tasks have the same parameters
  bool input_gradients;           // whether they are asked for
};

// Block <-> tensors of one task, [T, ...]. load() flips too; store() passes over tensors that are null.
template <class R>
void load_block(const MlpLayout<R>& layout, const MlpParams<const R>& from, int64_t task, R* block);
template <class R>
void store_block(const MlpLayout<R>& layout, const R* block, const MlpParams<R>& to, int64_t task);
template <class R>
void flip(const MlpLayout<R>& layout, R* block);

// Rates of each element as tensors of parameters: those at place `at` of the leading axes.
template <class R, class P>
MlpParams<P> rates_at(const MlpLayout<R>& layout, const MlpRates<P>& rates, int64_t at) {
  MlpParams<P> found;
  for (int l = 0; l < layout.layers; l++) {
    const Layer& a = layout.layer[l];
    if (rates.value[2 * l]) found.weight[l] = rates.value[2 * l] + at * a.in * a.out;
    if (rates.value[2 * l + 1]) found.bias[l] = rates.value[2 * l + 1] + at * a.out;
  }
  const int L = layout.layers;
  const int64_t out = layout.shape.output_size();
  if (layout.gamma >= 0 && rates.value[2 * L]) found.weight[L] = rates.value[2 * L] + at * out;
  if (layout.beta >= 0 && rates.value[2 * L + 1]) found.bias[L] = rates.value[2 * L + 1] + at * out;
  return found;
}

// Rows between a tensor [rows, width] and memory with rows of `ld`; padding becomes 0.
template <class R>
void load_rows(const R* from, int64_t rows, int64_t width, R* to, int64_t ld);
template <class R>
void store_rows(const R* from, int64_t rows, int64_t width, R* to, int64_t ld);

}  // namespace fastmeta::FASTMETA_ISA
