// What the kernels of convolutional networks are told. Sizes: T tasks, n examples, P parameters of one task.
#pragma once
#include "inner/mlp.h"

namespace fastmeta {

constexpr int kMaxConvs = 8;
constexpr int64_t kMostPadding = 2, kMostPool = 2;
constexpr int kConvTensors = 4 * kMaxConvs + 2;

enum class ConvNorm : int { none, batch, group };  // over the batch, or over groups of an image's channels

// x [in, height, width] -> convolution, 3 x 3 -> perhaps norm -> perhaps relu -> perhaps max-pool 2 x 2.
struct ConvBlock {
  int64_t in, height, width, out;
  int64_t stride, padding;  // padding: at most kMostPadding
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
  int64_t stride[kConvTensors] = {};  // from one task's to the next's; 0: one tensor for all tasks

  bool any() const {
    for (R* each : value)
      if (each) return true;
    return false;
  }
};
template <class R>
using ConvRates = Rates<R, kConvTensors>;
template <class R>
using ConvExamples = MlpExamples<R>;  // x [T, n, in, height, width]; y as there
template <class R>
using ConvExampleGrads = MlpExampleGrads<R>;

// The calls are those of mlp.h, field by field.
template <class R>
struct ConvForward {
  ConvNet net;
  int64_t count = 0;
  ConvTensors<const R> params;
  const R* x = nullptr;
  R* out = nullptr;         // forward, [T, n, outputs]
  const R* dout = nullptr;  // backward
  ConvTensors<R> dparams;
  R* dx = nullptr;
};

template <class R>
struct ConvLoss {
  ConvNet net;
  ConvTensors<const R> params;
  ConvExamples<R> examples;
  R* loss = nullptr;
  ConvTensors<R> dparams;
  ConvExampleGrads<R> grads;
};

template <class R>
struct ConvCurvature {
  ConvNet net;
  ConvTensors<const R> params, vectors;
  ConvExamples<R> examples;
  const R* dloss = nullptr;
  ConvTensors<R> dparams;
  ConvExampleGrads<R> grads;
  bool gauss_newton = false;
};

template <class R>
struct ConvAdapt {
  ConvNet net;
  int64_t steps = 0;
  bool first_order = false;
  ConvTensors<const R> params;
  ConvRates<const R> rates;
  ConvExamples<R> support;
  ConvTensors<R> adapted;         // forward
  ConvTensors<const R> dadapted;  // backward
  ConvTensors<R> dparams;
  ConvRates<R> drates;
  ConvExampleGrads<R> support_grads;
};

template <class R>
struct ConvMetaLoss {
  ConvNet net;
  int64_t steps = 0;
  bool first_order = false, with_grads = false;
  ConvTensors<const R> params;
  ConvRates<const R> rates;
  ConvExamples<R> support, query;
  R* loss = nullptr;
  ConvTensors<R> dparams;
  ConvRates<R> drates;
  ConvExampleGrads<R> support_grads, query_grads;
};

}  // namespace fastmeta
