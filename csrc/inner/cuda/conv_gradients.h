// The gradients of a pass of a conv op, or their tangents, after it has run back: host functions that enqueue the kernels of
// conv_gradients.cu, and what a caller asks for.
#pragma once
#include "inner/cuda/conv_layers.h"

namespace fastmeta::cuda::layerwise {

template <class R>
struct ConvTargets {
  Sinks<R> of[kConvTensors], then[kConvTensors];  // then: take what `of` have got
  Sinks<R> dx;
  TaskTensor<R> loss;  // the sum of the parts that `head` has left

  bool asks_block(int l) const;          // for a gradient to its parameters
  int lowest(const ConvNet& net) const;  // block that the gradients asked for reach; net.blocks: none
};

// To where the targets take them, after backward, or of the tangents: along direction.
template <class R>
void gradients(Queue& queue, const Convs<R>& convs, ConvPass<R>& pass, const ConvParams<const R>& params, const ConvTargets<R>& targets,
               const ConvParams<const R>* direction = nullptr);

// drates at a step -= the sums of g v, over each tensor or over all; g: one task's after another's, as `params_at` has them.
template <class R>
struct ConvRateSums {
  ConvRates<R> drates;
  int64_t step, steps;
  bool first;
};
template <class R>
void sum_rates(Queue& queue, const ConvNet& net, const ConvParams<const R>& g, const ConvParams<const R>& v, const ConvRateSums<R>& sums);

}  // namespace fastmeta::cuda::layerwise
