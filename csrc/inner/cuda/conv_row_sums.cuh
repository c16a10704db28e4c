// The sums over a channel that a batch norm needs, of each tile of a convolution as its results are stored, so that no kernel reads them
// for this alone: [T, channels, kRowSums, tiles across], which the norm's kernel (conv_norm.cuh) adds up in their order.
//
//   values     of z: its mean, the squares about it          gradients           dy, dy u
//   tangents   of rz: its mean, (rz - mean) u, u             gradient_tangents   rdy, rdy u, dy ru
//
// Where columns are in the order of windows, four neighbouring lanes hold one, and what has won there is stored too: gamma's sign says
// which z will have the largest y.
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
  R* won;   // [T, images, channels, windows], of values and tangents; null: not asked for
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
  int at[kOwn];      // in the task's results; negative: there is none
  int window[kOwn];  // its window in those of all of the task's rows; negative: none

  template <class F>
  __device__ __forceinline__ R sum(F&& f) const {
    R sum = 0;
#pragma unroll
    for (int o = 0; o < kOwn; o++)
      if (at[o] >= 0) sum += f(o);
    return warp_sum(sum);
  }
};

// The lane of four neighbours where their window was won.
template <class R>
__device__ __forceinline__ int winner_of(R gamma, R z) {
  R best = rank_of(gamma, z);
  int at = threadIdx.x % kWarp;
#pragma unroll
  for (int offset = 1; offset < 4; offset *= 2) {
    const R other = __shfl_xor_sync(kAllLanes, best, offset);
    const int from = __shfl_xor_sync(kAllLanes, at, offset);
    if (beats(other, from, best, at)) best = other, at = from;
  }
  return at;
}

// A row's place: first: of the task in the results; windows: in those that are won; set: of all tasks' channels.
struct RowPlace {
  int64_t task, first, first_window, set;
  int channel, tile, tiles;
};

// All lanes together.
template <class R, int kOwn>
__device__ __forceinline__ void row_sums(const RowSumsArguments<R>& c, const TileRow<R, kOwn>& row, const RowPlace& in) {
  R of[kRowSums] = {};
  const R *gammas = c.gamma.of(in.task), *betas = c.beta.of(in.task);
  const R gamma = gammas ? gammas[in.channel] : R(1);
  R z[kOwn];
#pragma unroll
  for (int o = 0; o < kOwn; o++) z[o] = c.kind == RowSums::values ? row.value[o] : row.at[o] >= 0 ? c.z[in.first + row.at[o]] : R(0);
  if (c.won) {
#pragma unroll
    for (int o = 0; o < kOwn; o++) {
      const R won = __shfl_sync(kAllLanes, row.value[o], winner_of(gamma, z[o]));
      if (row.window[o] >= 0 && threadIdx.x % 4 == 0) c.won[in.first_window + row.window[o]] = won;
    }
  }
  if (c.kind == RowSums::values || c.kind == RowSums::tangents)
    of[0] = row.sum([&](int o) { return row.value[o]; }) / row.sum([&](int) { return R(1); });
  if (c.kind == RowSums::values) {
    of[1] = row.sum([&](int o) { return (row.value[o] - of[0]) * (row.value[o] - of[0]); });
  } else {
    const Channel<R> norm{c.statistics[in.set * 2], c.statistics[in.set * 2 + 1], gamma, betas ? betas[in.channel] : R(0)};
    if (c.kind == RowSums::tangents) {
      of[1] = row.sum([&](int o) { return (row.value[o] - of[0]) * norm.u(z[o]); });
      of[2] = row.sum([&](int o) { return norm.u(z[o]); });
    } else {
      const auto open = [&](int o, R value) { return norm.open(c.relu, z[o]) ? value : R(0); };
      of[0] = row.sum([&](int o) { return open(o, row.value[o]); });
      of[1] = row.sum([&](int o) { return open(o, row.value[o]) * norm.u(z[o]); });
      if (c.kind == RowSums::gradient_tangents) {
        const NormTangent<R> tangent{c.rstatistics[in.set * 2], c.rstatistics[in.set * 2 + 1]};
        of[2] = row.sum([&](int o) {
          const int64_t at = in.first + row.at[o];
          return open(o, c.d[at]) * tangent.ru(norm, z[o], c.rz[at]);
        });
      }
    }
  }
  if (threadIdx.x % kWarp) return;
#pragma unroll
  for (int k = 0; k < kRowSums; k++) c.sums[(in.set * kRowSums + k) * in.tiles + in.tile] = of[k];
}

}  // namespace fastmeta::cuda
