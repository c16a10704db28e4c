// The MLP as the kernels see it, on every device.
#pragma once
#include "inner/network.h"

namespace fastmeta {

constexpr int kMaxLayers = 8;

// leaky_relu: with kLeak of what is negative; sine: sin z.
enum class Activation : int { relu, tanh, gelu, sigmoid, identity, silu, leaky_relu, sine };
constexpr double kLeak = 0.01;
constexpr double kNormEps = 1e-5;  // of a residual block's norm

#ifdef __CUDACC__
#define FASTMETA_ANYWHERE __host__ __device__
#else
#define FASTMETA_ANYWHERE
#endif

// Whether its second derivative is not 0 everywhere.
FASTMETA_ANYWHERE constexpr bool bends(Activation kind) {
  return kind != Activation::relu && kind != Activation::identity && kind != Activation::leaky_relu;
}

// W_l [T, out, in] and b_l [T, out], contiguous. Stride 0: one tensor for all tasks. A null pointer: no such tensor
// (no bias), or, where gradients are written, not asked for.
template <class R>
struct MlpParams {
  R* weight[kMaxLayers] = {};
  R* bias[kMaxLayers] = {};
  int64_t weight_stride[kMaxLayers] = {}, bias_stride[kMaxLayers] = {};
  bool turned[kMaxLayers] = {};  // W_l lies as [T, in, out], on a CPU

  bool any() const {
    for (int l = 0; l < kMaxLayers; l++)
      if (weight[l] || bias[l]) return true;
    return false;
  }
};

// x_0 = inputs; x_l = activation(x_{l-1} W_l' + b_l) for l < L; the last layer has no activation. width[l] = size of x_l. A residual block
// gives x_0 + gamma * norm(x_L) + beta, x_0 as wide as x_L; gamma and beta are weight and bias L.
struct MlpShape {
  template <class R>
  using Params = MlpParams<R>;
  static constexpr int kTensors = 2 * kMaxLayers;  // 2l: W, 2l + 1: b

  int64_t example_size() const { return width[0]; }
  int64_t output_size() const { return width[layers]; }
  int64_t multiply_adds() const {
    int64_t found = 0;
    for (int l = 0; l < layers; l++) found += width[l] * width[l + 1];
    return found;
  }

  int64_t tasks;
  int layers;
  int64_t width[kMaxLayers + 1];
  Activation activation;
  Loss loss;
  bool residual_norm = false;  // on a CPU
  bool tf32 = false;           // whether products of float32 may be in TF32: those of CUDA layer by layer are
};

template <class R>
using MlpRates = RatesOf<R, MlpShape>;
template <class R>
using MlpForward = ForwardCall<R, MlpShape>;
template <class R>
using MlpLoss = LossCall<R, MlpShape>;
template <class R>
using MlpCurvature = CurvatureCall<R, MlpShape>;
template <class R>
using MlpAdapt = AdaptCall<R, MlpShape>;
template <class R>
using MlpMetaLoss = MetaLossCall<R, MlpShape>;

}  // namespace fastmeta
