// One task's MLP in one block: what the kernels of all mlp ops are made of.
//
// A block takes task after task. Per task it owns the parameters, their direction of differentiation, activations and
// gradients of every layer: arrays in shared memory as long as that lasts, then in the block's slice of the workspace, whose
// size does not depend on the number of tasks, so that it stays in L2. Parameters, directions and inputs that are only read
// and do not fit are read where they are. Every phase ends with a barrier; sums run in a fixed order. One task costs n P
// multiply-adds forward, 2 n P backward, and twice that again for the tangents.
//
// Words of the CUDA kernels:
//   task      one task's network, parameters and examples; by task, a block owns it, else all tasks go through a layer together
//   need      what an op does with a task, from which the arrays of a block follow: Need
//   arena     a block's memory in pieces, shared memory first, then its slice of the workspace: Arena
//   layer     a layer of one task with its arrays: x inputs, z before the activation, a after it; slope and curve, the
//             activation's derivatives; d = dL/dz; r before a name: its tangent along the direction v
//   pass      forward or backward over all layers, alone or with tangents: mlp_passes.cuh
//   stage     a pass of the inner loop: descend (a step), query (the loss after all steps), chain (a step back): mlp_inner.cuh
//   sink      where an element of a gradient goes: into memory, added to a base, times a rate, or into a sum: mlp_gradient_sink.cuh
//   tile      64 x 64 numbers of a product that a block of 128 threads owns, layer by layer: mlp_tiles.cuh
//   slice     16 columns of A and rows of B for a tile, in shared memory: mlp_tile_memory.cuh
//   store     what becomes of a tile's sums: activation, gate, sink: mlp_stores.cuh
//   by task / by layer / by gram   the ways of a call, and how one is chosen: mlp_launch.cuh, mlp_gram.cu
#pragma once
#include "inner/mlp.h"
#include "inner/cuda/matmul.cuh"

namespace fastmeta::cuda {

constexpr int kMaxThreads = 256;
// Blocks of a multiprocessor, of kernels that for two would spill a few registers on sm_120 (nvcc 13.0, 2026-11-30).
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kWideBlocks = 1;
#else
constexpr int kWideBlocks = 2;
#endif

// What a kernel does with a task decides which arrays it needs.
struct Need {
  bool loss = false;       // outputs kept; otherwise they go to the caller's memory
  bool gradient = false;   // slopes, dL/dz
  bool curvature = false;  // tangents of all that along a direction
  bool adapts = false;     // parameters that change
  bool chain = false;      // a cotangent of the parameters
  int64_t kept = 0;        // numbers, more of them
};

// Shared memory first, in the order of asking. Without memory it only counts.
struct Arena {
  unsigned char *fast, *slow;
  int64_t fast_size, fast_used, slow_used;  // bytes

  // Null where `must` is false and shared memory is used up.
  template <class R>
  __host__ __device__ R* take(int64_t count, bool must = true) {
    const int64_t bytes = (count * int64_t(sizeof(R)) + 15) / 16 * 16;
    const bool fits = fast_used + bytes <= fast_size;
    if (!fits && !must) return nullptr;
    unsigned char* base = fits ? fast : slow;
    R* piece = base ? reinterpret_cast<R*>(base + (fits ? fast_used : slow_used)) : nullptr;
    fast_used += fits ? bytes : 0;
    slow_used += fits ? 0 : (bytes + 31) / 32 * 32;  // each piece begins with a sector
    return piece;
  }
};

// x [n, in] -> z = x W' + b -> a = activation(z) [n, out], or z itself in the last layer. Null: not needed.
template <class R>
struct Layer {
  int in, out;
  bool has_bias;
  const R *w, *b, *vw, *vb;  // [out, in], [out]; the direction, laid out alike
  const R *x, *rx;           // the layer below's a, ra
  R *a, *slope;              // activation'(z)
  R *ra, *bend;              // tangent of a; activation''(z) times the tangent of z
  R *d, *rd;                 // dL/dz and its tangent
};

template <class R>
struct Task {
  int layers, n, params;  // params: P
  Activation activation;
  Loss loss;
  Layer<R> layer[kMaxLayers];
  R *theta, *direction, *cotangent;  // [P]: W_1, b_1, W_2, ...; null: read where they are
  R *x, *kept;
  const void* y;
  const R* weights;  // of the examples' losses; null: ones
  R* dweights;       // [n]; null: not asked for
  bool subtracts;    // dweights -= the gradient to them
  R partial[kMaxThreads / kWarp];

  __host__ __device__ Layer<R>& last() { return layer[layers - 1]; }
};

// f(tensor, offset, size) for each parameter tensor: 2 l for W of layer l, 2 l + 1 for b; its place in theta.
#pragma nv_exec_check_disable  // f may be of the host alone
template <class R, class F>
__host__ __device__ __forceinline__ void for_each_tensor(const Task<R>& s, F&& f) {
  int offset = 0;
  for (int l = 0; l < s.layers; l++) {
    const int out = s.layer[l].out, size = s.layer[l].in * out;
    f(2 * l, offset, size);
    offset += size;
    if (s.layer[l].has_bias) f(2 * l + 1, offset, out);
    offset += s.layer[l].has_bias ? out : 0;
  }
}

template <class R>
__host__ __device__ void lay_out(Task<R>& s, Arena& arena, const MlpShape& shape, const MlpParams<const R>& params, int64_t n,
                                 const Need& need) {
  s.layers = shape.layers;
  s.activation = shape.activation;
  s.loss = shape.loss;
  const R *x = nullptr, *rx = nullptr;
  for (int l = 0; l < s.layers; l++) {
    const bool hidden = l + 1 < s.layers;
    const int64_t count = n * shape.width[l + 1];
    Layer<R>& y = s.layer[l];
    y = Layer<R>{};
    y.in = int(shape.width[l]);
    y.out = int(shape.width[l + 1]);
    y.has_bias = params.bias[l];
    y.x = x;
    y.rx = rx;
    x = y.a = hidden || need.loss ? arena.take<R>(count) : nullptr;
    y.slope = hidden && need.gradient ? arena.take<R>(count) : nullptr;
    y.d = need.gradient ? arena.take<R>(count) : nullptr;
    rx = y.ra = need.curvature ? arena.take<R>(count) : nullptr;
    y.bend = hidden && need.curvature && bends(shape.activation) ? arena.take<R>(count) : nullptr;
    y.rd = need.curvature ? arena.take<R>(count) : nullptr;
  }
  s.params = 0;
  for_each_tensor(s, [&](int, int, int size) { s.params += size; });
  s.theta = arena.take<R>(s.params, need.adapts);
  s.direction = need.curvature ? arena.take<R>(s.params, need.chain) : nullptr;
  s.cotangent = need.chain ? arena.take<R>(s.params) : nullptr;
  s.x = arena.take<R>(n * s.layer[0].in, false);
  s.kept = need.kept ? arena.take<R>(need.kept) : nullptr;
  for_each_tensor(s, [&](int tensor, int offset, int) {
    Layer<R>& y = s.layer[tensor / 2];
    if (s.theta) (tensor % 2 ? y.b : y.w) = s.theta + offset;
    if (s.direction) (tensor % 2 ? y.vb : y.vw) = s.direction + offset;
  });
}

template <class P>
__device__ P* tensor_of(const MlpParams<P>& params, int tensor, int64_t task) {
  const int l = tensor / 2;
  P* base = tensor % 2 ? params.bias[l] : params.weight[l];
  return base ? base + task * (tensor % 2 ? params.bias_stride[l] : params.weight_stride[l]) : nullptr;
}

template <class R>
__device__ void copy(R* to, const R* from, int64_t count) {
  for (int64_t e = threadIdx.x; e < count; e += blockDim.x) to[e] = from[e];
}

// flat [P] = the task's tensors
template <class R>
__device__ void gather(const Task<R>& s, R* flat, const MlpParams<const R>& params, int64_t task) {
  for_each_tensor(s, [&](int tensor, int offset, int size) { copy(flat + offset, tensor_of(params, tensor, task), size); });
}

// the task's tensors, those that are asked for = flat [P]
template <class R>
__device__ void scatter(const Task<R>& s, const R* flat, const MlpParams<R>& params, int64_t task) {
  for_each_tensor(s, [&](int tensor, int offset, int size) {
    if (R* to = tensor_of(params, tensor, task)) copy(to, flat + offset, size);
  });
}

// The layers' parameters, or with `direction` their direction, become those of a task. A barrier must follow.
template <class R>
__device__ void load_params(Task<R>& s, const MlpParams<const R>& params, int64_t task, bool direction = false) {
  R* flat = direction ? s.direction : s.theta;
  if (flat) return gather(s, flat, params, task);
  if (threadIdx.x) return;
  for_each_tensor(s, [&](int tensor, int, int) {
    Layer<R>& y = s.layer[tensor / 2];
    const R*& place = direction ? (tensor % 2 ? y.vb : y.vw) : (tensor % 2 ? y.b : y.w);
    place = tensor_of(params, tensor, task);
  });
}

// The targets of a task; y null: none.
template <class R>
__device__ const void* targets_of(Task<R>& s, const void* y, int64_t n, int64_t task) {
  const int64_t size = s.loss == Loss::mse ? s.last().out * int64_t(sizeof(R)) : int64_t(sizeof(int64_t));
  return y ? static_cast<const char*>(y) + task * n * size : nullptr;
}

// The weights of a task's examples, and where the gradient to them goes. Of one thread.
template <class R>
__device__ void set_weights(Task<R>& s, const R* weights, R* dweights, bool subtracts, int64_t n, int64_t task) {
  s.weights = weights ? weights + task * n : nullptr;
  s.dweights = dweights ? dweights + task * n : nullptr;
  s.subtracts = subtracts;
}

// The examples become those of a task: between two barriers. dweights: of all tasks.
template <class R>
__device__ void load_examples(Task<R>& s, const Examples<R>& examples, int64_t task, R* dweights = nullptr, bool subtracts = false) {
  const int64_t n = examples.count, in = s.layer[0].in;
  const R* x = examples.x + task * n * in;
  if (s.x) copy(s.x, x, n * in);
  if (threadIdx.x) return;
  s.n = int(n);
  s.layer[0].x = s.x ? s.x : x;
  s.y = targets_of(s, examples.y, n, task);
  set_weights(s, examples.weights, dweights, subtracts, n, task);
}

// The block's sum of v, on every thread. partial: shared memory, one for each warp.
template <class R>
__device__ R block_sum(R* partial, R v) {
  v = warp_sum(v);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = v;
  __syncthreads();
  R total = 0;
  for (unsigned w = 0; w < blockDim.x / kWarp; w++) total += partial[w];
  __syncthreads();
  return total;
}

}  // namespace fastmeta::cuda
