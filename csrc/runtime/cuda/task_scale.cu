// One launch for all gradients of a call: a thread takes every so many-th element of each array, in turn. Reads neighbouring
// elements together, whether it sums over the tasks or not; one pass over memory. Sums of many tasks are sums of short ones.
#include "runtime/cuda/kernels.h"
#include "inner/cuda/matmul.cuh"

namespace fastmeta::cuda {
namespace {

constexpr int kScaleThreads = 256;

template <class R>
__global__ void __launch_bounds__(kScaleThreads) scale_kernel(const __grid_constant__ TaskScale<R> p) {
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, stride = int64_t(gridDim.x) * blockDim.x;
  for (int i = 0; i < p.count; i++) {
    const auto& array = p.arrays[i];
    const int64_t size = array.size, count = array.shared ? size : p.T * size;
    for (int64_t e = first; e < count; e += stride) {
      if (!array.shared) {
        array.out[e] = array.unit[e] * (p.dloss ? p.dloss[e / size] : R(1));
        continue;
      }
      R total = 0;
      for (int64_t begin = 0; begin < p.T; begin += kShortSum) {
        const int64_t end = begin + kShortSum < p.T ? begin + kShortSum : p.T;
        R part = 0;
        for (int64_t t = begin; t < end; t++) part += array.unit[t * size + e] * (p.dloss ? p.dloss[t] : R(1));
        total += part;
      }
      array.out[e] = total;
    }
  }
}

}  // namespace

template <class R>
const char* task_scale(const TaskScale<R>& p, void* stream) {
  int64_t most = 0;
  for (int i = 0; i < p.count; i++) {
    const int64_t count = p.arrays[i].shared ? p.arrays[i].size : p.T * p.arrays[i].size;
    most = most > count ? most : count;
  }
  if (!most) return nullptr;
  const int64_t blocks = (most + kScaleThreads - 1) / kScaleThreads, enough = 8 * int64_t(device_limits().multiprocessors);
  return launch(scale_kernel<R>, unsigned(blocks < enough ? blocks : enough > 0 ? enough : 1), kScaleThreads, {}, stream, p);
}

template const char* task_scale(const TaskScale<float>&, void*);
template const char* task_scale(const TaskScale<double>&, void*);

}  // namespace fastmeta::cuda
