// The losses: value, gradient and second derivative in a network's outputs, rows of n examples, padded.
#pragma once
#include "inner/network.h"
#include "inner/cpu/matmul.h"

namespace fastmeta::FASTMETA_ISA {

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

// The mean loss of z, and d = its gradient to z. row_sums: [n], whole vectors.
template <class R>
R loss_of(const Outputs<R>& outputs, const void* y, const R* z, R* d, R* row_sums);

// found = the loss's second derivative in the outputs times tangents.
template <class R>
void loss_tangent(const Outputs<R>& outputs, const void* y, const R* tangents, R* found);

}  // namespace fastmeta::FASTMETA_ISA
