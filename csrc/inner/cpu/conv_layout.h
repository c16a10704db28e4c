// Where the parameters of a convolutional network lie in a thread's memory: a block, in which W of a convolution lies as
// [k, k, in, out], so that the taps of a row of pixels meet rows in sequence, b, gamma and beta as rows, all padded to whole
// vectors of channels. Activations have their channels last, padded too, but for the images, whose channels are as many as they
// are. What padding holds is 0 times something: an infinite pixel or number makes it NaN, and with it more of its task than PyTorch
// would. After these, the form of gradients, follow the kernels as [k, k, out, in], which gradients to their inputs take:
// flip() makes them. The first block has them where gradients to the images are asked for, whose channels they pad. The linear layer takes
// its features in that order, rows [outputs, features].
#pragma once
#include <cstring>

#include "inner/conv.h"
#include "inner/cpu/mlp_layout.h"

namespace fastmeta::FASTMETA_ISA {

enum ConvTensor { kWeight, kBias, kGamma, kBeta };

template <class R>
struct ConvLayout {
  struct Block {
    int64_t in, out;                                      // channels of a pixel in memory
    int64_t kernel;                                       // its side
    int64_t begin[4];                                     // of W, b, gamma, beta; -1: none
    int64_t flipped;                                      // -1: none
    int64_t flipped_in() const { return padded<R>(in); }  // channels of gradients to the input

    int64_t taps() const { return kernel * in; }  // numbers of a row of pixels that a kernel's row meets
  };

  // `images`: whether gradients to them are asked for.
  ConvLayout(const ConvNet& net, const ConvParams<const R>& params, bool images);

  // Calls f(tensor, begin, rows, columns) for every tensor of the parameters.
  template <class F>
  void for_each_tensor(F&& f) const {
    for (int l = 0; l < net.blocks; l++)
      for (int i = 0; i < 4; i++)
        if (block[l].begin[i] >= 0) f(4 * l + i, block[l].begin[i], i == kWeight ? block[l].kernel * block[l].taps() : 1, net.block[l].out);
    f(4 * net.blocks, weight, net.outputs, features);
    if (bias >= 0) f(4 * net.blocks + 1, bias, int64_t(1), net.outputs);
  }

  int64_t padded_outputs() const { return outputs; }
  int64_t dimage_size() const { return net.block[0].height * net.block[0].width * block[0].flipped_in(); }  // of the gradient to an image

  ConvNet net;
  Block block[kMaxConvs];
  int64_t last, features, outputs;  // what the last block leaves; of the linear layer, in memory
  int64_t weight, bias;             // of it
  int64_t gradient = 0, size = 0;
  bool shared = true;  // all tasks have the same parameters
};

// Zeros in the form of gradients, but for the kernels of blocks l that `written(l)`: their numbers come at once.
template <class R, class F>
void clear(const ConvLayout<R>& layout, R* block, F&& written) {
  int64_t from = 0;
  for (int l = 0; l < layout.net.blocks; l++) {
    const auto& b = layout.block[l];
    const int64_t begin = b.begin[kWeight];
    if (begin < 0 || !written(l)) continue;
    std::memset(block + from, 0, size_t(begin - from) * sizeof(R));
    from = begin + b.kernel * b.taps() * b.out;
  }
  std::memset(block + from, 0, size_t(layout.gradient - from) * sizeof(R));
}

// Block <-> tensors; load_block() flips too; store_block() passes over tensors that are null.
template <class R>
void load_block(const ConvLayout<R>& layout, const ConvParams<const R>& from, int64_t task, R* block);
template <class R>
void store_block(const ConvLayout<R>& layout, const R* block, const ConvParams<R>& to, int64_t task);
template <class R>
void flip(const ConvLayout<R>& layout, R* block);

// Rates of each element as tensors of parameters: those at place `at` of the leading axes.
template <class R, class P>
ConvParams<P> rates_at(const ConvLayout<R>& layout, const ConvRates<P>& rates, int64_t at) {
  ConvParams<P> found;
  for (int i = 0; i < kConvTensors; i++)
    if (rates.value[i]) found.value[i] = rates.value[i] + at * tensor_size(layout.net, i);
  return found;
}

}  // namespace fastmeta::FASTMETA_ISA
