// Host code of all launchers: the current device, and which kernels it has let have more shared memory.
#include "runtime/cuda/launch.h"

#include <mutex>
#include <set>
#include <utility>

#include "runtime/cuda/kernels.h"

namespace fastmeta::cuda {
namespace {

std::mutex mutex;
std::set<std::pair<const void*, int>> opted_in;  // kernels and devices

}  // namespace

DeviceGuard::DeviceGuard(int device) {
  int current = device;
  cudaGetDevice(&current);
  if (current != device && cudaSetDevice(device) == cudaSuccess) previous_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

cudaError_t opt_in(const void* kernel, size_t shared_bytes) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  const std::lock_guard<std::mutex> lock(mutex);
  if (error != cudaSuccess || opted_in.count({kernel, device})) return error;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
  if (error == cudaSuccess) opted_in.insert({kernel, device});
  return error;
}

DeviceLimits device_limits() {
  DeviceLimits limits;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return limits;
  cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&limits.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&limits.shared_per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  cudaDeviceGetAttribute(&limits.shared_reserved, cudaDevAttrReservedSharedMemoryPerBlock, device);
  return limits;
}

}  // namespace fastmeta::cuda
