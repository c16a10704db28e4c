// What a conv op sums where tiles and norms have left parts: gradients, into the next parameters or cotangents at once; those of the linear
// layer, which are products of few rows; the loss; and products of gradients with vectors for those of rates.
#pragma once
#include "inner/cuda/conv_norm.cuh"
#include "inner/cuda/mlp_gradient_sink.cuh"

namespace fastmeta::cuda {

constexpr int kSummed = 20, kSumThreads = 256;  // tensors of a launch: those of four blocks, of the linear layer, and the loss

// [T, count, width]
template <class R>
struct Parts {
  const R* of;
  int width;
};

// A gradient in parts, which go into a sink as one sum, in their order: element e is part e, or where there are factors [T, count, size /
// width] the products of parts and factors.
template <class R>
struct SumOfParts {
  Parts<R> parts[2], factors[2];  // a sum of two products where parts[1] is not null
  int64_t count;
  int size;
  Sinks<R> to, then;  // then: takes what `to` has got

  __device__ __forceinline__ R sum(int64_t task, int e) const {
    R sum = 0;
#pragma unroll
    for (int k = 0; k < 2; k++) {
      if (!parts[k].of) continue;
      const int width = parts[k].width, across = factors[k].width;
      const R* part = parts[k].of + task * count * width + e % width;
      const R* factor = factors[k].of ? factors[k].of + task * count * across + e / width : nullptr;
      for (int64_t i = 0; i < count; i++) sum += factor ? factor[i * across] * part[i * width] : part[i * width];
    }
    return sum;
  }
};
template <class R>
struct SumsOfParts {
  int count;
  int64_t blocks;  // of a task
  SumOfParts<R> item[kSummed];
};

__host__ __device__ constexpr int64_t sum_blocks(int size) { return (size + kSumThreads - 1) / kSumThreads; }

template <class R>
__global__ void __launch_bounds__(kSumThreads) gradient_kernel(const __grid_constant__ SumsOfParts<R> c) {
  const int64_t task = blockIdx.x / c.blocks;
  int64_t block = blockIdx.x % c.blocks;
  int which = 0;
  for (; block >= sum_blocks(c.item[which].size); which++) block -= sum_blocks(c.item[which].size);
  const SumOfParts<R>& s = c.item[which];
  const int e = int(block) * kSumThreads + threadIdx.x;
  if (e >= s.size) return;
  R none = 0;
  const Sink<R> to = s.to.of(task);
  to(e, s.sum(task, e), none);
  if (s.then.asked()) s.then.of(task)(e, to.out[e], none);
}

template <class R>
struct RateItem {
  TaskTensor<const R> g, v;
  TaskTensor<R> drate;
  int64_t size;
};
template <class R>
struct RateArguments {
  int count;
  bool shared, first;
  RateItem<R> item[kSummed];
};

// A block takes a tensor of a task, or with `shared` all of them.
template <class R>
__global__ void __launch_bounds__(kNormThreads) rate_kernel(const __grid_constant__ RateArguments<R> c) {
  FASTMETA_SHARED(NormPartials<R>, partials);
  const int blocks = c.shared ? 1 : c.count, begin = int(blockIdx.x % blocks);
  const int64_t task = blockIdx.x / blocks;
  R sum = 0;
  for (int i = begin; i < (c.shared ? c.count : begin + 1); i++) {
    const R *g = c.item[i].g.of(task), *v = c.item[i].v.of(task);
    for (int64_t e = threadIdx.x; e < c.item[i].size; e += kNormThreads) sum += g[e] * v[e];
  }
  sum = block_sum(partials.of_warp, sum);
  R* drate = c.item[begin].drate.of(task);
  if (drate && threadIdx.x == 0) *drate = (c.first ? R(0) : *drate) - sum;
}

}  // namespace fastmeta::cuda
