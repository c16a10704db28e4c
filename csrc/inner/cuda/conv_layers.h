// The conv ops on CUDA, over all tasks layer by layer: host functions that enqueue the kernels of conv_layers.cu.
//
// A pass costs two launches for each block forward (convolution; norm, ReLU and pool), one for the linear layer with the loss and the
// gradient to what it takes, and two for each block back (the norm's gradients; the convolution's to its images), but one for the first.
// The gradients to all kernels are one launch for every four blocks; another adds up their parts, what norms left, and the gradients to the
// linear layer. Examples lie as in the caller's memory, channel by channel. Kept of a pass: of each block z, x, dz, d, z where windows were
// won, and two numbers of each set of a norm.
#pragma once
#include "inner/conv.h"
#include "inner/cuda/mlp_layers.h"

namespace fastmeta::cuda::layerwise {

// The arrays of the blocks, of all tasks; those of tangents have no dz of values.
template <class R>
struct ConvArrays {
  R* x[kMaxConvs + 1];              // x[l]: [T, n, in, H, W], that block l takes, from 1 on; the last: the features
  R* z[kMaxConvs];                  // [T, n, out, H', W']
  R *dz[kMaxConvs], *d[kMaxConvs];  // gradients to z; to x[l + 1]
  R* won[kMaxConvs];                // z where windows were won, as x[l + 1]; without pool z
  R* statistics[kMaxConvs];         // [T, sets, 2]
  R* planes[kMaxConvs];  // [3, T, n, out]: of the gradients to bias, gamma, beta, each plane's; of batch norms' last two: [T, out]
};

// What a forward and a backward pass over a batch leave.
template <class R>
struct ConvPass {
  ConvArrays<R> of;
  R *logits, *dlogits;  // [T, n, outputs]
  Examples<R> examples;
  int64_t n = 0;

  void load(const Examples<R>& given) { n = given.count, examples = given; }
};

// The network of a call, and the memory that its passes share.
template <class R>
struct Convs {
  ConvNet net;
  ConvArrays<R> tangents;
  R *rlogits, *rdlogits;
  R* parts[kMaxConvs];  // of the gradients to kernels
  R* losses;            // parts of the loss
  R* sums;              // of the tiles of one convolution: see conv_row_sums.cuh
};

constexpr int64_t kNoTangents = -1;

// most, tangents: examples of a task, and those that tangents are asked for.
template <class R>
Convs<R> lay_out(Queue& queue, const ConvNet& net, int64_t most, bool gradient, int64_t tangents = kNoTangents);
// A pass in `memory`, or null, of `most` examples; its bytes.
template <class R>
int64_t place_pass(ConvPass<R>& pass, const ConvNet& net, int64_t most, bool gradient, void* memory);

// Through the blocks.
template <class R>
void forward(Queue& queue, const Convs<R>& convs, ConvPass<R>& pass, const ConvParams<const R>& params);
// After `forward`, along `direction`.
template <class R>
void tangents_forward(Queue& queue, const Convs<R>& convs, ConvPass<R>& pass, const ConvParams<const R>& params,
                      const ConvParams<const R>& direction);
// The linear layer after `forward`, or along `direction` with tangents too after `tangents_forward`.
template <class R>
struct HeadWork {
  bool outputs = true, loss = true;         // what it finds
  Output<R> what;                           // but the loss: its parts are left in convs.losses
  bool back = false, back_tangent = false;  // whether it goes on to the gradient to the features, its tangent
};
template <class R>
void head(Queue& queue, const Convs<R>& convs, const ConvPass<R>& pass, const ConvParams<const R>& params, const HeadWork<R>& work,
          const ConvParams<const R>* direction = nullptr);
int64_t loss_parts(int64_t n);  // of a task
// From the gradient to the features down to block `lowest`; its tangents, after the gradient itself.
template <class R>
void backward(Queue& queue, const Convs<R>& convs, ConvPass<R>& pass, const ConvParams<const R>& params, int lowest);
template <class R>
void tangents_backward(Queue& queue, const Convs<R>& convs, ConvPass<R>& pass, const ConvParams<const R>& params,
                       const ConvParams<const R>& direction, int lowest);
template <class P>
TaskTensor<P> slices_of(const ConvParams<P>& params, int tensor) {
  return {params.value[tensor], params.stride[tensor]};
}

template <class R>
ConvParams<const R> as_const(const ConvParams<R>& params) {
  ConvParams<const R> found;
  for (int i = 0; i < kConvTensors; i++) found.value[i] = params.value[i], found.stride[i] = params.stride[i];
  return found;
}

}  // namespace fastmeta::cuda::layerwise
