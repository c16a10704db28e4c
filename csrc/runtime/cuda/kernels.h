// The CUDA kernels, for callers without CUDA headers. Every launcher takes the arguments of its CPU namesake with pointers
// to device memory, `workspace`: device memory of as many bytes as <launcher>_workspace tells, and a cudaStream_t. It only
// enqueues kernels (no allocation, no synchronisation: it can be captured into a CUDA graph) and returns nullptr, or the
// error in words. The device of the pointers must be the current one: DeviceGuard.
#pragma once
#include <cstdint>

#include "inner/conv.h"
#include "inner/mlp.h"
#include "runtime/task_scale.h"

namespace fastmeta::cuda {

inline constexpr const char* ops[] = {"mlp_forward",  "mlp_loss",  "mlp_grad",  "mlp_hvp",  "mlp_adapt",  "mlp_meta_loss",
                                      "conv_forward", "conv_loss", "conv_grad", "conv_hvp", "conv_adapt", "conv_meta_loss"};

// Makes `device` the current one as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;  // -1: nothing to restore
};

#define FASTMETA_LAUNCHER(NAME, ARGUMENTS)                                        \
  template <class R>                                                              \
  const char* NAME(const ARGUMENTS<R>& arguments, void* workspace, void* stream); \
  template <class R>                                                              \
  int64_t NAME##_workspace(const ARGUMENTS<R>& arguments);
FASTMETA_LAUNCHER(mlp_forward_fwd, MlpForward)
FASTMETA_LAUNCHER(mlp_forward_bwd, MlpForward)
FASTMETA_LAUNCHER(mlp_loss, MlpLoss)  // mlp_grad too
FASTMETA_LAUNCHER(mlp_hvp, MlpCurvature)
FASTMETA_LAUNCHER(mlp_adapt_fwd, MlpAdapt)
FASTMETA_LAUNCHER(mlp_adapt_bwd, MlpAdapt)
FASTMETA_LAUNCHER(mlp_meta_loss, MlpMetaLoss)
FASTMETA_LAUNCHER(conv_forward_fwd, ConvForward)  // of networks with a linear layer, as all of them
FASTMETA_LAUNCHER(conv_forward_bwd, ConvForward)
FASTMETA_LAUNCHER(conv_loss, ConvLoss)  // conv_grad too
FASTMETA_LAUNCHER(conv_hvp, ConvCurvature)
FASTMETA_LAUNCHER(conv_adapt_fwd, ConvAdapt)
FASTMETA_LAUNCHER(conv_adapt_bwd, ConvAdapt)
FASTMETA_LAUNCHER(conv_meta_loss, ConvMetaLoss)
#undef FASTMETA_LAUNCHER
template <class R>
const char* task_scale(const TaskScale<R>& arguments, void* stream);  // without a workspace

}  // namespace fastmeta::cuda
