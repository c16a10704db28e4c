// The losses: value, gradient and second derivative in a network's outputs, rows of n examples, padded.
#pragma once
#include "inner/network.h"
#include "inner/cpu/matmul.h"

namespace fastmeta::FASTMETA_ISA {

// The targets of examples in turn, and what their losses count; weights null: 1.
template <class R>
struct Targets {
  const void* y;
  const R* weights;
};

template <class R>
struct Outputs {
  Loss loss;
  int64_t n, classes, ld;
  R scale;         // example_scale of the batch that the rows are, or are a part of
  R* probability;  // [n, ld], cross_entropy: written by loss_of, read by loss_tangent
};

// What one example (mse: one number) of n counts in the mean loss, times 2 for mse; 0 where none counts.
template <class R>
R example_scale(Loss loss, int64_t classes, const void* y, int64_t n);

// The mean loss of z, and d = its gradient to z; with weights, unless null, dweights [n] = its gradient to them. row_sums: [n], whole
// vectors.
template <class R>
R loss_of(const Outputs<R>& outputs, const Targets<R>& y, const R* z, R* d, R* row_sums, R* dweights);

// found = the loss's second derivative in the outputs times tangents.
template <class R>
void loss_tangent(const Outputs<R>& outputs, const Targets<R>& y, const R* tangents, R* found);

// dweights [n] += the tangents of the loss's gradient to the weights.
template <class R>
void add_weight_tangents(const Outputs<R>& outputs, const Targets<R>& y, const R* z, const R* tangents, R* dweights);

}  // namespace fastmeta::FASTMETA_ISA
