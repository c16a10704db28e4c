// Stands in for the CUDA runtime where FASTMETA_EMULATED names it, so that a C++ compiler builds the .cu sources for a CPU: the
// keywords, threads, barriers, shuffles and runtime calls that they use, and no more.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "emulator/emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#define FASTMETA_DYNAMIC_SHARED(NAME) unsigned char* const NAME = ::fastmeta::emulation::dynamic_shared()
#define FASTMETA_SHARED(TYPE, NAME)   \
  static const char NAME##_place = 0; \
  TYPE& NAME = *static_cast<TYPE*>(::fastmeta::emulation::static_shared({&NAME##_place, #NAME, sizeof(TYPE), alignof(TYPE)}))

using dim3 = fastmeta::emulation::Index;

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  fastmeta::emulation::sync_block({file, line});
}

inline void __syncwarp(unsigned mask = 0xffffffffu, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  fastmeta::emulation::sync_warp(mask, {file, line});
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = fastmeta::emulation::shuffle(mask, bits, unsigned(lane), {file, line});
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return __shfl_sync(mask, value, int(fastmeta::emulation::thread_index().x) ^ lanes, file, line);
}

inline double sinpi(double x) { return std::sin(x * M_PI); }
inline double cospi(double x) { return std::cos(x * M_PI); }
inline float sinpif(float x) { return float(sinpi(x)); }
inline float cospif(float x) { return float(cospi(x)); }

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrReservedSharedMemoryPerBlock,
};
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = fastmeta::emulation::device_index();
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const fastmeta::emulation::Device& device = fastmeta::emulation::device();
  const int values[] = {device.multiprocessors, device.shared_per_block, device.shared_per_multiprocessor, device.shared_reserved};
  *value = values[attribute];
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  const bool fits = fastmeta::emulation::opt_in(reinterpret_cast<const void*>(kernel), size_t(bytes));
  return fits ? cudaSuccess : cudaErrorInvalidValue;
}

// Runs the kernel at once. Throws Fault where it breaks a rule. What hands the launch's parameters over is no access to memory.
template <class... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), const Parameters&... arguments) {
  const auto thread = [&]() __attribute__((no_sanitize("thread"))) { kernel(arguments...); };
  const auto call = [](const void* self) __attribute__((no_sanitize("thread"))) { (*static_cast<decltype(&thread)>(self))(); };
  const fastmeta::emulation::Launch launch{
      reinterpret_cast<const void*>(kernel), config->gridDim, config->blockDim, config->dynamicSmemBytes, config->stream, {call, &thread}};
  return fastmeta::emulation::run(launch) ? cudaSuccess : cudaErrorInvalidValue;
}

#define threadIdx (::fastmeta::emulation::thread_index())
#define blockIdx (::fastmeta::emulation::block_index())
#define blockDim (::fastmeta::emulation::block_size())
#define gridDim (::fastmeta::emulation::grid_size())
