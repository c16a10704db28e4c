// What the Python-facing functions of the mlp ops share: the network that their arguments are, and the launch of its kernels.
#pragma once
#include "runtime/cpu/kernels.h"
#include "inner/network_arguments.h"
#ifdef FASTMETA_CUDA
#include "runtime/cuda/kernels.h"
#endif

namespace fastmeta {

class MlpCall : public NetworkCall {
 public:
  MlpCall(const char* op, Handle params, Handle inputs, Str activation, Str loss);

  MlpShape shape;

  Shape core(int tensor) const override;
};

template <class R>
MlpParams<R> pointers(const MlpCall& call, const Tensors& tensors);

// One kernel on both devices; the CUDA one null where the extension is built without CUDA.
template <class Args>
struct Kernel {
  void (*on_cpu)(const Args&);
  const char* (*on_cuda)(const Args&, void* workspace, void* stream);
  int64_t (*workspace)(const Args&);  // in bytes
};

// Runs the kernel of the tensors' device. RuntimeError with CUDA's message where a launch fails.
template <class Args>
void launch(const MlpCall& call, const Args& args, Kernel<Args> kernel);

#ifdef FASTMETA_CUDA
#define FASTMETA_KERNEL(NAME) {cpu<R>().NAME, &cuda::NAME<R>, &cuda::NAME##_workspace<R>}
#else
#define FASTMETA_KERNEL(NAME) {cpu<R>().NAME, nullptr, nullptr}
#endif

}  // namespace fastmeta
