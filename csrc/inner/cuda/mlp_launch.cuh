// How a call is launched: in which of two ways (mlp_gram.h has a third), with how many blocks and threads, and how much memory of which kind.
//
// By task: one kernel, a block per task, as long as a task's arrays fit into the shared memory of a block, except for the parameters
// kept from step to step. Nothing but inputs and results crosses to L2, and a call is one launch.
// By layer (mlp_layers.h): where they do not fit, so that every product would read and write L2 without tiles; and where few tasks
// with large matrices would leave the card idle: fewer than a quarter of the multiprocessors get one, and a pass over the network
// takes a block longer (some 20 us at 2^20 multiply-adds, estimated) than the 2 or 3 us for each of the L launches that spread it.
#pragma once
#include "inner/cuda/mlp_layers.h"

namespace fastmeta::cuda {

// No GPU has measured these: they follow from registers, shared memory and the estimates above (2026-11-25, tools/gpu.md).
constexpr int kThreadsPerMultiprocessor = 512;  // 128 registers each
constexpr int64_t kSmallTask = 1024;            // elements of the largest matrix product below which half the threads do
constexpr int64_t kLargeTask = 1 << 20;         // multiply-adds of a pass from which few tasks go by layer
constexpr int64_t kMaxElements = 0x7fffffff;    // of one array of one task: offsets within a task are ints

// What a block is told of its memory.
struct Block {
  unsigned char* workspace;
  int64_t shared_bytes, workspace_bytes;  // of each block
};

struct Plan {
  unsigned blocks = 0, threads = 0;
  Block block{};
  int64_t most_shared = 0;  // bytes of a block, whatever the plan
  bool too_large = false, by_layer = false;
};

// What a launcher does with its arguments. n: the most examples of a task.
template <class Arguments>
struct Way {
  Need need;
  int64_t n;
  void (*by_task)(Arguments, Need, Block);  // a kernel
  void (*by_layer)(const Arguments&, const Need&, Queue&);
};

// Shared memory is divided among the blocks that a multiprocessor will hold at a time: as many as its registers take, or as
// there are tasks for, or as their arrays fit.
template <class R>
void share_memory(Plan& plan, const DeviceLimits& device, int64_t multiprocessors, const MlpShape& shape, const MlpParams<const R>& params,
                  int64_t n, Need need) {
  const int64_t kept = need.kept, needed = (shape.tasks + multiprocessors - 1) / multiprocessors;
  int64_t resident = kThreadsPerMultiprocessor / plan.threads;
  const int64_t own = int64_t(sizeof(Task<R>)) + 16;  // static
  plan.most_shared = device.shared_per_block - own;
  for (resident = resident < needed ? resident : needed; resident >= 1; resident--) {
    int64_t shared = device.shared_per_multiprocessor / resident - device.shared_reserved - own;
    shared = shared < plan.most_shared ? shared : plan.most_shared;
    Task<R> task;
    for (const bool keeps : {false, true}) {
      need.kept = keeps ? kept : 0;
      Arena arena{nullptr, nullptr, shared > 0 ? shared : 0, 0, 0};
      lay_out(task, arena, shape, params, n, need);
      if (!keeps && arena.slow_used) break;
      plan.by_layer = false;
      plan.block.shared_bytes = arena.fast_used;
      plan.block.workspace_bytes = (arena.slow_used + 255) / 256 * 256;
    }
    const int64_t blocks = multiprocessors * resident;
    plan.blocks = unsigned(shape.tasks < blocks ? shape.tasks : blocks);
    if (!plan.by_layer) return;
  }
}

template <class R>
Plan make_plan(const MlpShape& shape, const MlpParams<const R>& params, int64_t n, const Need& need) {
  Plan plan;
  int64_t largest = 0, all = 0;
  for (int l = 0; l <= shape.layers; l++) {
    const int64_t width = shape.width[l], weights = l ? width * shape.width[l - 1] : 0;
    if (width > kMaxElements || n > kMaxElements || weights > kMaxElements || n * width > kMaxElements) plan.too_large = true;
    largest = largest > n * width ? largest : n * width;
    largest = largest > weights ? largest : weights;
    all += weights + width;
  }
  plan.too_large = plan.too_large || all > kMaxElements;
  if (plan.too_large) return plan;
  const DeviceLimits device = device_limits();
  const int64_t multiprocessors = device.multiprocessors > 0 ? device.multiprocessors : 1;
  plan.threads = largest > kSmallTask ? kMaxThreads : kMaxThreads / 2;
  plan.by_layer = true;
  if ((shape.tasks * 4 > multiprocessors || n * all < kLargeTask) && need.kept <= kMaxElements)
    share_memory(plan, device, multiprocessors, shape, params, n, need);
  return plan;
}

template <class Arguments>
const char* launch_way(const Arguments& c, const Way<Arguments>& way, void* workspace, void* stream) {
  Plan plan = make_plan(c.shape, c.params, way.n, way.need);
  if (plan.too_large) return "arrays of one task with 2^31 elements or more";
  if (!c.shape.tasks) return nullptr;
  if (plan.by_layer) {
    Queue queue(true, workspace, stream);
    way.by_layer(c, way.need, queue);
    return queue.error();
  }
  plan.block.workspace = static_cast<unsigned char*>(workspace);
  const SharedMemory shared{size_t(plan.block.shared_bytes), size_t(plan.most_shared)};
  return launch(way.by_task, plan.blocks, plan.threads, shared, stream, c, way.need, plan.block);
}

template <class Arguments>
int64_t workspace_of(const Arguments& c, const Way<Arguments>& way) {
  const Plan plan = make_plan(c.shape, c.params, way.n, way.need);
  if (!plan.by_layer || plan.too_large) return plan.blocks * plan.block.workspace_bytes;
  Queue queue(false, nullptr, nullptr);
  way.by_layer(c, way.need, queue);
  return queue.bytes();
}

// Defines a launcher of kernels.h: WAY(arguments) is the Way it goes.
#define FASTMETA_DEFINE_LAUNCHER(NAME, ARGUMENTS, WAY)                     \
  template <class R>                                                       \
  const char* NAME(const ARGUMENTS<R>& c, void* workspace, void* stream) { \
    return launch_way(c, WAY(c), workspace, stream);                       \
  }                                                                        \
  template <class R>                                                       \
  int64_t NAME##_workspace(const ARGUMENTS<R>& c) {                        \
    return workspace_of(c, WAY(c));                                        \
  }                                                                        \
  template const char* NAME(const ARGUMENTS<float>&, void*, void*);        \
  template const char* NAME(const ARGUMENTS<double>&, void*, void*);       \
  template int64_t NAME##_workspace(const ARGUMENTS<float>&);              \
  template int64_t NAME##_workspace(const ARGUMENTS<double>&);

// A kernel by task: what(s, t) for each task t of the block, after a barrier; s has the arrays of `need` in the block's memory.
template <class R, class What>
__device__ __forceinline__ void each_task(const MlpShape& shape, const MlpParams<const R>& params, int64_t n, const Need& need,
                                          const Block& block, What&& what) {
  FASTMETA_DYNAMIC_SHARED(shared);
  FASTMETA_SHARED(Task<R>, s);
  if (threadIdx.x == 0) {
    Arena arena{shared, block.workspace + blockIdx.x * block.workspace_bytes, block.shared_bytes, 0, 0};
    lay_out(s, arena, shape, params, n, need);
  }
  for (int64_t t = blockIdx.x; t < shape.tasks; t += gridDim.x) {
    __syncthreads();
    what(s, t);
  }
}

}  // namespace fastmeta::cuda
