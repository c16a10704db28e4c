// The sums over a channel that a batch norm needs, of each tile of a convolution as its results are stored, so that no kernel reads them
// for this alone: [T, channels, kRowSums, tiles across], which the norm's kernel (conv_norm.cuh) adds up in their order.
//
//   values     of z: its mean, the squares about it          gradients           dy, dy u
//   tangents   of rz: its mean, (rz - mean) u, u             gradient_tangents   rdy, rdy u, dy ru
#pragma once
#include "inner/cuda/conv_channel.cuh"
#include "inner/cuda/mlp_gradient_sink.cuh"
#include "inner/cuda/matmul.cuh"

namespace fastmeta::cuda {

constexpr int kRowSums = 3;
enum class RowSums : int { values, tangents, gradients, gradient_tangents };

// Arrays lie as the results, [T, images, channels, pixels]; statistics [T, channels, 2].
template <class R>
struct RowSumsArguments {
  R* sums;  // null: not asked for
  RowSums kind;
  bool relu;
  const R *statistics, *rstatistics;
  TaskTensor<const R> gamma, beta;
  const R *z, *rz, *d;  // of gradients: where a window was won; d: the gradient whose tangents the results are
};

// A warp's row of a tile; a lane has kOwn of its numbers.
template <class R, int kOwn>
struct TileRow {
  R value[kOwn];
  int at[kOwn];  // in the task's results; negative: beyond the last

  template <class F>
  __device__ __forceinline__ R sum(F&& f) const {
    R sum = 0;
#pragma unroll
    for (int o = 0; o < kOwn; o++)
      if (at[o] >= 0) sum += f(o);
    return warp_sum(sum);
  }
};

// first: of the task in the arrays; set: of all tasks' channels; all lanes together.
template <class R, int kOwn>
__device__ __forceinline__ void row_sums(const RowSumsArguments<R>& c, const TileRow<R, kOwn>& row, int64_t task, int channel,
                                         int64_t first, int64_t set, int tile, int tiles, int count) {
  R of[kRowSums] = {};
  if (c.kind == RowSums::values) {
    of[0] = row.sum([&](int o) { return row.value[o]; }) / R(count);
    of[1] = row.sum([&](int o) { return (row.value[o] - of[0]) * (row.value[o] - of[0]); });
  } else {
    const R *gamma = c.gamma.of(task), *beta = c.beta.of(task);
    const Channel<R> norm{c.statistics[set * 2], c.statistics[set * 2 + 1], gamma ? gamma[channel] : R(1), beta ? beta[channel] : R(0)};
    R z[kOwn];
#pragma unroll
    for (int o = 0; o < kOwn; o++) z[o] = row.at[o] >= 0 ? c.z[first + row.at[o]] : R(0);
    if (c.kind == RowSums::tangents) {
      of[0] = row.sum([&](int o) { return row.value[o]; }) / R(count);
      of[1] = row.sum([&](int o) { return (row.value[o] - of[0]) * norm.u(z[o]); });
      of[2] = row.sum([&](int o) { return norm.u(z[o]); });
    } else {
      const auto open = [&](int o, R value) { return c.relu && norm.y(z[o]) <= 0 ? R(0) : value; };
      of[0] = row.sum([&](int o) { return open(o, row.value[o]); });
      of[1] = row.sum([&](int o) { return open(o, row.value[o]) * norm.u(z[o]); });
      if (c.kind == RowSums::gradient_tangents) {
        const NormTangent<R> tangent{c.rstatistics[set * 2], c.rstatistics[set * 2 + 1]};
        of[2] = row.sum([&](int o) { return open(o, c.d[first + row.at[o]]) * tangent.ru(norm, z[o], c.rz[first + row.at[o]]); });
      }
    }
  }
  if (threadIdx.x % kWarp) return;
#pragma unroll
  for (int k = 0; k < kRowSums; k++) c.sums[(set * kRowSums + k) * tiles + tile] = of[k];
}

}  // namespace fastmeta::cuda
