// How many blocks and threads a launch takes, and how much memory of which kind.
#pragma once
#include "mlp.cuh"

namespace fastmeta::cuda {

constexpr int kThreadsPerMultiprocessor = 512;  // 128 registers each
constexpr int64_t kSmallTask = 1024;            // elements of the largest matrix product below which half the threads do
constexpr int64_t kMaxElements = 0x7fffffff;    // of one array of one task: offsets within a task are ints

// What a block is told of its memory.
struct Block {
  unsigned char* workspace;
  int64_t shared_bytes, workspace_bytes;  // of each block
};

struct Plan {
  unsigned blocks = 0, threads = 0;
  Block block{};
  bool too_large = false;
};

// `n`: the most examples of a task.
template <class R>
Plan plan(const MlpShape& shape, const MlpParams<const R>& params, int64_t n, const Need& need) {
  Plan found;
  int64_t largest = 0, all = 0;
  for (int l = 0; l <= shape.layers; l++) {
    const int64_t width = shape.width[l], weights = l ? width * shape.width[l - 1] : 0;
    if (width > kMaxElements || n > kMaxElements || weights > kMaxElements || n * width > kMaxElements) found.too_large = true;
    largest = largest > n * width ? largest : n * width;
    largest = largest > weights ? largest : weights;
    all += weights + width;
  }
  found.too_large = found.too_large || all > kMaxElements;
  if (found.too_large) return found;

  // Shared memory is divided among the blocks that a multiprocessor will hold at a time.
  const DeviceLimits device = device_limits();
  const int64_t multiprocessors = device.multiprocessors > 0 ? device.multiprocessors : 1;
  found.threads = largest > kSmallTask ? kMaxThreads : kMaxThreads / 2;
  int64_t resident = kThreadsPerMultiprocessor / found.threads;
  const int64_t needed = (shape.tasks + multiprocessors - 1) / multiprocessors;
  resident = resident < needed ? resident : needed;
  int64_t shared = device.shared_per_multiprocessor / (resident > 0 ? resident : 1) - device.shared_reserved;
  shared = (shared < device.shared_per_block ? shared : device.shared_per_block) - int64_t(sizeof(Task<R>)) - 16;

  Task<R> task;
  Arena arena{nullptr, nullptr, shared > 0 ? shared : 0, 0, 0};
  lay_out(task, arena, shape, params, n, need);
  found.block.shared_bytes = arena.fast_used;
  found.block.workspace_bytes = (arena.slow_used + 255) / 256 * 256;
  const int64_t blocks = multiprocessors * resident;
  found.blocks = unsigned(shape.tasks < blocks ? shape.tasks : blocks);
  return found;
}

inline int64_t workspace_of(const Plan& plan) { return plan.blocks * plan.block.workspace_bytes; }

// The kernel takes (arguments, need, block).
template <class Arguments>
const char* launch_tasks(void (*kernel)(Arguments, Need, Block), const Arguments& arguments, const Need& need, Plan plan,
                         void* workspace, void* stream) {
  if (plan.too_large) return "arrays of one task with 2^31 elements or more";
  if (!plan.blocks) return nullptr;
  plan.block.workspace = static_cast<unsigned char*>(workspace);
  return launch(kernel, plan.blocks, plan.threads, size_t(plan.block.shared_bytes), stream, arguments, need, plan.block);
}

// The beginning of a kernel: the block's arrays laid out in its memory. A barrier must follow.
template <class R>
__device__ void set_up(Task<R>& s, const MlpShape& shape, const MlpParams<const R>& params, int64_t n, const Need& need,
                       const Block& block, unsigned char* shared) {
  if (threadIdx.x) return;
  Arena arena{shared, block.workspace + blockIdx.x * block.workspace_bytes, block.shared_bytes, 0, 0};
  lay_out(s, arena, shape, params, n, need);
}

}  // namespace fastmeta::cuda
