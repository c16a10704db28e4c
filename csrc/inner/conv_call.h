// The convolutional network that the arguments of a conv op are, and its kernels.
#pragma once
#include "inner/network_call.h"
#include "runtime/cpu/kernels.h"

namespace fastmeta {

// `blocks`: (stride, padding, norm, eps, relu, pool, slope, kernel, skip) of each; norm: "batch", None, or a number of groups. Networks
// without a linear layer: on a CPU.
class ConvCall : public NetworkCall {
 public:
  using Network = ConvNet;
  static constexpr OpNames kOps{"conv_forward", "conv_loss", "conv_grad", "conv_hvp", "conv_adapt", "conv_meta_loss"};

  ConvCall(const char* op, Handle params, Handle inputs, Handle blocks, Str loss = "mse", const Shape& lead = {});

  Shape core(int tensor) const override;
  void require_examples(int64_t count) const override;  // every mean of a batch norm must be over two numbers at least

  ConvNet shape;

 private:
  void read_block(Handle spec, const Tensor& weight, const Shape& image);
  void require_summand(int l, const Shape& image) const;
};

// conv_forward of a network without a linear layer, shape.outputs = 0 (conv_forward.cpp).
py::tuple conv_features_fwd(const ConvCall& call, Handle needs);
py::tuple conv_features_bwd(const ConvCall& call, const Tensor& dout, Handle saved, Handle needs);

template <class R>
ConvParams<R> pointers(const ConvCall& call, const Tensors& tensors) {
  ConvParams<R> found;
  for (size_t i = 0; i < tensors.size(); i++)
    if (tensors[i]) found.value[i] = tensors[i].data<R>(), found.stride[i] = call.stride(tensors[i], i);
  return found;
}

template <class R>
NetworkKernels<R, ConvNet> kernels(const ConvCall&) {
  const NetworkOnCpu<R, ConvNet>& on_cpu = cpu<R>().conv;
  return FASTMETA_NETWORK_KERNELS(conv);
}

}  // namespace fastmeta
