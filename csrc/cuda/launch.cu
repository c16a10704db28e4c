// Host code of all launchers: the current device.
#include "launch.h"

#include "kernels.h"

namespace fastmeta::cuda {

DeviceGuard::DeviceGuard(int device) {
  int current = device;
  cudaGetDevice(&current);
  if (current != device && cudaSetDevice(device) == cudaSuccess) previous_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
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
