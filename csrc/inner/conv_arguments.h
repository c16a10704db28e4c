// What the Python-facing functions of the conv ops share: the network that their arguments are.
#pragma once
#include "runtime/cpu/kernels.h"
#include "inner/network_arguments.h"

namespace fastmeta {

// `blocks`: (stride, padding, norm, eps, relu, pool) of each; norm: "batch", None, or a number of groups. CPU tensors alone.
class ConvCall : public NetworkCall {
 public:
  ConvCall(const char* op, Handle params, Handle inputs, Handle blocks, Str loss);

  ConvNet net;

  Shape core(int tensor) const override;
  // ValueError unless every mean of a batch norm is over two numbers at least.
  void require_statistics(int64_t examples) const;

 private:
  void read_block(Handle spec, const Tensor& weight, const Shape& image);
};

template <class R>
ConvTensors<R> pointers(const ConvCall& call, const Tensors& tensors) {
  ConvTensors<R> found;
  for (size_t i = 0; i < tensors.size(); i++)
    if (tensors[i]) found.value[i] = tensors[i].data<R>(), found.stride[i] = call.stride(tensors[i], i);
  return found;
}

}  // namespace fastmeta
