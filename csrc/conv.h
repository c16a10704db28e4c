// What the kernel of convolutional networks is told. Sizes: T tasks, n examples, P parameters of one task.
#pragma once
#include "mlp.h"

namespace fastmeta {

constexpr int kMaxConvs = 8;
constexpr int kConvTensors = 4 * kMaxConvs + 2;

enum class ConvNorm : int { none, batch, group };  // over the batch, or over groups of an image's channels

// x [in, height, width] -> convolution, 3 x 3 -> perhaps norm -> perhaps relu -> perhaps max-pool 2 x 2.
struct ConvBlock {
  int64_t in, height, width, out;
  int64_t stride, padding;  // padding: at most 2
  ConvNorm norm;
  int64_t groups;  // of channels with a mean and a variance: batch norm: all by themselves
  bool relu;
  int64_t pool;  // 1: none, or 2
  double eps;

  int64_t conv_height() const { return (height + 2 * padding - 3) / stride + 1; }
  int64_t conv_width() const { return (width + 2 * padding - 3) / stride + 1; }
  int64_t out_height() const { return conv_height() / pool; }
  int64_t out_width() const { return conv_width() / pool; }
};

// The blocks, then a linear layer over all that the last one leaves.
struct ConvNet {
  int64_t tasks;
  int blocks;
  ConvBlock block[kMaxConvs];
  int64_t outputs;
  Loss loss;
};

// W [out, in, 3, 3], b, gamma, beta [out] of each block; W [outputs, features], b of the linear layer. Null: none, or not asked for.
template <class R>
struct ConvTensors {
  R* value[kConvTensors] = {};
};
template <class R>
using ConvRates = Rates<R, kConvTensors>;

// Adaptation and query loss [T]; with gradients asked for, the whole meta-gradient of each task's loss. All tasks start from the same
// parameters. Targets of the query null: its outputs alone.
template <class R>
struct ConvMetaLoss {
  ConvNet net;
  int64_t steps;
  bool first_order, with_grads;
  ConvTensors<const R> params;
  ConvRates<const R> rates;
  MlpExamples<R> support, query;  // x [T, n, in, height, width]
  R *loss, *outputs;              // [T]; [T, n, outputs]; either may be null
  ConvTensors<R> dparams;         // [T, ...]
  ConvRates<R> drates;            // [T, steps or 1, size]
};

}  // namespace fastmeta
