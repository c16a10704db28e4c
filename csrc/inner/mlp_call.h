// The MLP that the arguments of an mlp op are, and its kernels.
#pragma once
#include "inner/network_call.h"
#include "runtime/cpu/kernels.h"

namespace fastmeta {

class MlpCall : public NetworkCall {
 public:
  using Network = MlpShape;
  static constexpr OpNames kOps{"mlp_forward", "mlp_loss", "mlp_grad", "mlp_hvp", "mlp_adapt", "mlp_meta_loss"};

  MlpCall(const char* op, Handle params, Handle inputs, Handle network, Str loss = "mse", const Shape& lead = {});

  Shape core(int tensor) const override;

  MlpShape shape;
  bool turned[kMaxLayers] = {};  // those of params that lie by columns
};

template <class R>
MlpParams<R> pointers(const MlpCall& call, const Tensors& tensors) {
  MlpParams<R> found;
  for (size_t i = 0; i < tensors.size(); i++) {
    if (!tensors[i]) continue;
    (i % 2 ? found.bias[i / 2] : found.weight[i / 2]) = tensors[i].data<R>();
    (i % 2 ? found.bias_stride[i / 2] : found.weight_stride[i / 2]) = call.stride(tensors[i], i);
    if (i % 2 == 0) found.turned[i / 2] = &tensors == &call.params && call.turned[i / 2];
  }
  return found;
}

template <class R>
NetworkKernels<R, MlpShape> kernels(const MlpCall&) {
  const NetworkOnCpu<R, MlpShape>& on_cpu = cpu<R>().mlp;
  return FASTMETA_NETWORK_KERNELS(mlp);
}

}  // namespace fastmeta
