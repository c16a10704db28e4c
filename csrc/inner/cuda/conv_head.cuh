// The linear layer of a conv op with the loss: its outputs, the loss with its gradient, and the gradient to what it takes, or these and
// their tangents, in one launch. A block takes kHeadRows images of a task: all of it goes image by image, but for the number of those that
// count. A warp sums an output of all of them along the features, so that the weights come once for every kHeadRows images, from L2.
#pragma once
#include "inner/cuda/conv_layers.h"
#include "inner/cuda/mlp_output.cuh"

namespace fastmeta::cuda {

constexpr int kHeadRows = 4, kHeadThreads = 128, kHeadWarps = kHeadThreads / kWarp;

template <class R>
struct HeadArguments {
  int n, features, outputs;
  int64_t blocks;  // of a task
  bool finds_outputs, finds_loss;
  TaskTensor<const R> w, b, vw, vb;
  const R *x, *rx;                           // [T, n, features]
  R *logits, *rlogits, *dlogits, *rdlogits;  // [T, n, outputs]
  R *dx, *rdx;                               // [T, n, features]; null: not asked for
  R* losses;                                 // [T, blocks]: the parts of the loss
  Loss loss;
  Examples<R> examples;
  layerwise::Output<R> what;
};

// What the blocks' passes share: images first .. first + rows of a task.
struct HeadRows {
  int first, rows;

  __device__ int at(int r) const { return first + least(r, rows - 1); }  // beyond the end: the last again
};

template <class R, bool kTangent>
__device__ __forceinline__ void find_outputs(const HeadArguments<R>& c, int64_t task, const HeadRows& own) {
  const R *w = c.w.of(task), *vw = c.vw.of(task), *b = c.b.of(task), *vb = c.vb.of(task);
  const R *x = c.x + task * c.n * c.features, *rx = kTangent ? c.rx + task * c.n * c.features : nullptr;
  for (int o = threadIdx.x / kWarp; o < c.outputs; o += kHeadWarps) {
    R sum[kHeadRows] = {}, rsum[kHeadRows] = {};
    for (int f = threadIdx.x % kWarp; f < c.features; f += kWarp) {
      const R weight = w[o * c.features + f], change = kTangent ? vw[o * c.features + f] : R(0);
#pragma unroll
      for (int r = 0; r < kHeadRows; r++) {
        const int at = own.at(r) * c.features + f;
        sum[r] = std::fma(x[at], weight, sum[r]);
        if constexpr (kTangent) rsum[r] = std::fma(x[at], change, std::fma(rx[at], weight, rsum[r]));
      }
    }
#pragma unroll
    for (int r = 0; r < kHeadRows; r++) {
      sum[r] = warp_sum(sum[r]);
      if constexpr (kTangent) rsum[r] = warp_sum(rsum[r]);
      if (threadIdx.x % kWarp != unsigned(r) || r >= own.rows) continue;
      const int64_t at = (task * c.n + own.first + r) * c.outputs + o;
      c.logits[at] = b ? sum[r] + b[o] : sum[r];
      if constexpr (kTangent) c.rlogits[at] = vb ? rsum[r] + vb[o] : rsum[r];
    }
  }
}

// The loss, and its gradient in the outputs, after a barrier; see mlp_output.cuh.
template <class R, bool kTangent>
__device__ __forceinline__ void find_loss(const HeadArguments<R>& c, Task<R>& s, int64_t task, const HeadRows& own) {
  const int64_t first = task * c.n * c.outputs;
  if (threadIdx.x == 0) {
    s.layer[0] = {};
    s.layer[0].out = c.outputs;
    s.layer[0].a = c.logits + first, s.layer[0].d = c.dlogits ? c.dlogits + first : nullptr;
    if (kTangent) s.layer[0].ra = c.rlogits + first, s.layer[0].rd = c.rdlogits + first;
    s.layers = 1;
    s.n = c.n;
    s.loss = c.loss;
    s.y = targets_of(s, c.examples.y, c.n, task);
    set_weights(s, c.examples.weights, c.what.dweights, c.what.subtracts, c.n, task);
  }
  __syncthreads();
  const R dloss = kTangent && c.what.dloss ? c.what.dloss[task] : R(0);
  const R part = output_gradient(s, kTangent, dloss, own.first, own.first + own.rows);
  if (threadIdx.x == 0 && c.losses) c.losses[blockIdx.x] = part;
  if (!c.what.dy.asked()) return;
  const Sink<R> dy = c.what.dy.of(task);
  const R* d = (kTangent ? c.rdlogits : c.dlogits) + first;
  R none = 0;
  for (int e = own.first * c.outputs + threadIdx.x; e < (own.first + own.rows) * c.outputs; e += kHeadThreads) dy(e, -d[e], none);
}

// dx = d W, rdx = rd W + d V.
template <class R, bool kTangent>
__device__ __forceinline__ void find_gradients(const HeadArguments<R>& c, int64_t task, const HeadRows& own) {
  const R *w = c.w.of(task), *vw = c.vw.of(task);
  const R *d = c.dlogits + task * c.n * c.outputs, *rd = kTangent ? c.rdlogits + task * c.n * c.outputs : nullptr;
  for (int f = threadIdx.x; f < c.features; f += kHeadThreads) {
    R sum[kHeadRows] = {}, rsum[kHeadRows] = {};
    for (int o = 0; o < c.outputs; o++) {
      const R weight = w[o * c.features + f], change = kTangent ? vw[o * c.features + f] : R(0);
#pragma unroll
      for (int r = 0; r < kHeadRows; r++) {
        const int at = own.at(r) * c.outputs + o;
        sum[r] = std::fma(d[at], weight, sum[r]);
        if constexpr (kTangent) rsum[r] = std::fma(rd[at], weight, std::fma(d[at], change, rsum[r]));
      }
    }
#pragma unroll
    for (int r = 0; r < kHeadRows; r++) {
      if (r >= own.rows) continue;
      const int64_t at = (task * c.n + own.first + r) * c.features + f;
      if (c.dx) c.dx[at] = sum[r];
      if (kTangent && c.rdx) c.rdx[at] = rsum[r];
    }
  }
}

template <class R, bool kTangent>
__global__ void __launch_bounds__(kHeadThreads, 4) head_kernel(const __grid_constant__ HeadArguments<R> c) {
  FASTMETA_SHARED(Task<R>, s);
  const int64_t task = blockIdx.x / c.blocks;
  const int first = int(blockIdx.x % c.blocks) * kHeadRows;
  const HeadRows own{first, least(kHeadRows, c.n - first)};
  if (c.finds_outputs) find_outputs<R, kTangent>(c, task, own);
  if (c.finds_loss) find_loss<R, kTangent>(c, s, task, own);
  if (c.dx || c.rdx) find_gradients<R, kTangent>(c, task, own);
}

}  // namespace fastmeta::cuda
