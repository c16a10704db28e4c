// The convolutional network as the kernels see it. Examples: [T, n, in, height, width].
#pragma once
#include "inner/network.h"

namespace fastmeta {

constexpr int kMaxConvs = 16;
constexpr int64_t kMostPadding = 2, kMostPool = 2;
constexpr int kConvTensors = 4 * kMaxConvs + 2;

enum class ConvNorm : int { none, batch, group };  // over the batch, or over groups of an image's channels

// x [in, height, width] -> convolution -> perhaps norm -> perhaps relu -> perhaps max-pool 2 x 2.
struct ConvBlock {
  int64_t in, height, width, out;
  int64_t stride, padding;  // padding: at most kMostPadding
  int64_t kernel;           // side of the kernels: of an encoder 3 or 1
  int64_t
      skip;  // of an encoder; not 0: x is what the block so many places before takes, and what the last block gives is added before relu
  ConvNorm norm;
  int64_t groups;  // of channels with a mean and a variance: batch norm: all by themselves
  bool relu;
  double slope;  // what relu multiplies a negative number by: of an encoder
  int64_t pool;  // 1: none, or 2
  double eps;

  int64_t conv_height() const { return (height + 2 * padding - kernel) / stride + 1; }
  int64_t conv_width() const { return (width + 2 * padding - kernel) / stride + 1; }
  int64_t out_height() const { return conv_height() / pool; }
  int64_t out_width() const { return conv_width() / pool; }
  // Whether a kernel meets all of an image at once: a linear layer.
  bool whole() const { return kernel == height && kernel == width && !padding; }
  int64_t multiply_adds() const { return kernel * kernel * in * out * conv_height() * conv_width(); }
};

// W [out, in, kernel, kernel], b, gamma, beta [out] of each block; W [outputs, features], b of the linear layer. Null: none, or not asked
// for.
template <class R>
struct ConvParams {
  R* value[kConvTensors] = {};
  int64_t stride[kConvTensors] = {};  // from one task's to the next's; 0: one tensor for all tasks

  bool any() const {
    for (R* each : value)
      if (each) return true;
    return false;
  }
};

// The blocks, then a linear layer over all that the last one leaves, or over the mean of each channel; without one (outputs: 0) what the
// last block leaves is what the network gives.
struct ConvNet {
  template <class R>
  using Params = ConvParams<R>;
  static constexpr int kTensors = kConvTensors;

  int64_t example_size() const { return block[0].in * block[0].height * block[0].width; }
  int64_t output_size() const { return outputs; }
  // What the linear layer takes of an example; pixels() numbers of the last block make one.
  int64_t features() const { return block[blocks - 1].out * all_pixels() / pixels(); }
  int64_t all_pixels() const { return block[blocks - 1].out_height() * block[blocks - 1].out_width(); }
  int64_t pixels() const { return by_mean ? all_pixels() : 1; }
  int64_t multiply_adds() const {
    int64_t found = outputs * features();
    for (int l = 0; l < blocks; l++) found += block[l].multiply_adds();
    return found;
  }

  // Channels of all batch norms.
  int64_t normed() const {
    int64_t found = 0;
    for (int l = 0; l < blocks; l++) found += block[l].norm == ConvNorm::batch ? block[l].out : 0;
    return found;
  }

  int64_t tasks;
  int blocks;
  ConvBlock block[kMaxConvs];
  int64_t outputs;
  bool by_mean = false;  // on a CPU
  Loss loss;
  bool tf32 = false;  // whether convolutions of float32 may be in TF32: those of CUDA are
};

// Elements of a parameter tensor.
inline int64_t tensor_size(const ConvNet& net, int tensor) {
  if (tensor < 4 * net.blocks) {
    const ConvBlock& b = net.block[tensor / 4];
    return tensor % 4 ? b.out : b.out * b.in * b.kernel * b.kernel;
  }
  return tensor == 4 * net.blocks ? net.outputs * net.features() : net.outputs;
}

// The features of a batch, of a network without a linear layer (outputs: 0).
struct ConvFeaturesSizes {
  int64_t kept = 0, work = 0;  // numbers; kept: of each task
};
template <class R>
struct ConvFeatures {
  ConvNet shape;
  int64_t count = 0;
  bool keeps = false;  // forward: into `kept` what backward needs
  ConvParams<const R> params;
  const R* x = nullptr;
  R *out = nullptr, *mean = nullptr, *var = nullptr;  // forward: [T, n, features]; of the batch norms [T, channels of all], or null
  const R* dout = nullptr;                            // backward
  ConvParams<R> dparams;
  R* dx = nullptr;
  R *kept = nullptr, *work = nullptr;
  ConvFeaturesSizes* sizes = nullptr;
};

template <class R>
using ConvRates = RatesOf<R, ConvNet>;
template <class R>
using ConvForward = ForwardCall<R, ConvNet>;
template <class R>
using ConvLoss = LossCall<R, ConvNet>;
template <class R>
using ConvCurvature = CurvatureCall<R, ConvNet>;
template <class R>
using ConvAdapt = AdaptCall<R, ConvNet>;
template <class R>
using ConvMetaLoss = MetaLossCall<R, ConvNet>;

}  // namespace fastmeta
