// How a kernel is launched. FASTMETA_EMULATED, where defined, names a header that stands in for the CUDA runtime, so that a
// C++ compiler can build the same sources for a CPU.
#pragma once
#ifdef FASTMETA_EMULATED
#include FASTMETA_EMULATED
#else
#include <cuda_runtime.h>
#define FASTMETA_SHARED(TYPE, NAME) __shared__ TYPE NAME
#define FASTMETA_DYNAMIC_SHARED(NAME) extern __shared__ __align__(16) unsigned char NAME[]
#endif

namespace fastmeta::cuda {

constexpr size_t kDefaultShared = 32 * 1024;  // bytes of dynamic shared memory that, beside a kernel's static arrays, need no opting in

// Lets `kernel` have so much dynamic shared memory on the current device, on whichever thread it asks first.
cudaError_t opt_in(const void* kernel, size_t shared_bytes);

// Of a block's dynamic shared memory, in bytes.
struct SharedMemory {
  size_t bytes = 0, most = 0;  // most: that any launch of the kernel asks for on this device
};

// Enqueues kernel(arguments...). Returns nullptr, or the error in words.
template <class... Parameters>
const char* launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, SharedMemory shared, void* stream,
                   const Parameters&... arguments) {
  cudaError_t error = cudaSuccess;
  if (shared.bytes > kDefaultShared) error = opt_in(reinterpret_cast<const void*>(kernel), shared.most);
  if (error == cudaSuccess) {
    const cudaLaunchConfig_t config{dim3(blocks), dim3(threads), shared.bytes, static_cast<cudaStream_t>(stream), nullptr, 0};
    error = cudaLaunchKernelEx(&config, kernel, arguments...);
  }
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // reported here: nobody else shall find it
  return cudaGetErrorString(error);
}

// What the current device has; zeros where there is none.
struct DeviceLimits {
  int multiprocessors = 0;
  int shared_per_block = 0, shared_per_multiprocessor = 0, shared_reserved = 0;  // bytes; reserved: by CUDA in each block
};
DeviceLimits device_limits();

}  // namespace fastmeta::cuda
