// The products of all tasks' layers, for networks that one block cannot hold: C = A B, or A_1 B_1 + A_2 B_2 as tangents are, in
// tiles of 64 x 64.
//
// A block of 128 threads owns a tile of one task's C, in registers. Slices of A and B, 16 deep, go through shared memory, with
// 128-bit loads where the matrix allows them: the next one is on its way in registers while the threads multiply the last
// (mlp_tile_memory.cuh), so that a slice costs one barrier. There it lies as [depth][row], its rows permuted so that writing it, along
// the rows or along the depth, meets no bank twice. Elements of A come N / 64 times, those of B M / 64 times, from L2. Every sum
// runs along the inner dimension, in one order. What becomes of it: mlp_stores.cuh.
#pragma once
#include "inner/cuda/mlp_tile_memory.cuh"
#include "inner/cuda/mlp_stores.cuh"

namespace fastmeta::cuda {

template <class R, class Shape>
constexpr int kTileBlocks = (sizeof(R) == 4 ? 4 : 2) * kTileThreads / Shape::kThreads;  // of a multiprocessor: a double takes two registers

__host__ __device__ inline int tiles_across(int N) { return N ? ceil_div(N, kTileSide) : 1; }  // one for `bias` alone
__host__ __device__ inline int64_t tiles_of(int M, int N) { return int64_t(ceil_div(M, kTileSide)) * tiles_across(N); }

// How A [M, K] and B [K, N] lie: forward as [M, K] and [N, K], backward as [M, K] and [K, N], weights as [K, M] and [K, N].
enum class Form { forward, backward, weights };

template <class R, class Store>
struct Product {
  int M, N, K, pieces;  // pieces: the number of products in the sum
  TaskTensor<const R> a[2], b[2];
  Store store;
  Sinks<R> bias;  // weights: of the sums over K of A_1

  __host__ __device__ int64_t tiles() const { return tiles_of(M, N); }
};

// Launched together: the blocks of a task take the tiles of one product after the other.
template <class R, class Store>
struct Products {
  int count;
  int64_t tiles;  // of a task
  R* partial;     // [T, tiles, 2]: a tile's sums of the thread's sums, of its elements and of `bias`; null: not asked for
  Product<R, Store> item[kMaxLayers];
};

// A thread's part of a slice on its way: quads along the dimension that is contiguous in memory, the depth or the kSide rows.
template <class R, bool kAlongDepth, int kSide = kTileSide, int kThreads = kTileThreads>
struct Part {
  static constexpr int kQuads = kSide * kDepth / 4 / kThreads;
  Quad<R> quad[kQuads];

  __device__ __forceinline__ static int row(int q) {
    const int e = threadIdx.x + q * kThreads;
    return kAlongDepth ? e / (kDepth / 4) : e % (kSide / 4) * 4;
  }
  __device__ __forceinline__ static int depth(int q) {
    const int e = threadIdx.x + q * kThreads;
    return kAlongDepth ? e % (kDepth / 4) * 4 : e / (kSide / 4);
  }

  // Of a matrix with `rows` rows and inner dimension K, from `first` and k on; zeros beyond its ends.
  __device__ __forceinline__ void load(const R* matrix, int rows, int K, int first, int k) {
    const int length = kAlongDepth ? K : rows, lines = kAlongDepth ? rows : K;
    const bool wide = length % 4 == 0 && reinterpret_cast<uintptr_t>(matrix) % 16 == 0;
#pragma unroll
    for (int q = 0; q < kQuads; q++) {
      const int line = kAlongDepth ? first + row(q) : k + depth(q), at = kAlongDepth ? k + depth(q) : first + row(q);
      const R* from = matrix + int64_t(line) * length + at;
      if (wide && line < lines && at < length) {
        quad[q] = *reinterpret_cast<const Quad<R>*>(from);
        continue;
      }
#pragma unroll
      for (int c = 0; c < 4; c++) quad[q].v[c] = line < lines && at + c < length ? from[c] : R(0);
    }
  }

  __device__ __forceinline__ void store(R (*slice)[kSide + kPad]) const {
#pragma unroll
    for (int q = 0; q < kQuads; q++) {
      const int k = depth(q), r = row(q);
      if constexpr (kAlongDepth) {
#pragma unroll
        for (int c = 0; c < 4; c++) slice[k + c][place(k, r)] = quad[q].v[c];
      } else {
        *reinterpret_cast<Quad<R>*>(&slice[k][place(k, r)]) = quad[q];
      }
    }
  }
};

template <class R>
struct Partials {
  R of_warp[kTileThreads / kWarp];
};

// Multiply: how slices are multiplied.
template <class R, Form kForm, class Store, class Multiply>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<R, Square>)
    product_kernel(const __grid_constant__ Products<R, Store> products) {
  using Memory = Room<R, Square>;
  FASTMETA_SHARED(Memory, room);
  FASTMETA_SHARED(Partials<R>, partials);
  const int64_t task = blockIdx.x / products.tiles;
  int64_t tile = blockIdx.x % products.tiles;
  int which = 0;
  while (tile >= products.item[which].tiles()) tile -= products.item[which++].tiles();
  const Product<R, Store>& p = products.item[which];
  const int across = tiles_across(p.N), i = int(tile / across) * kTileSide, j = int(tile % across) * kTileSide;
  const int per_piece = ceil_div(p.K, kDepth), count = per_piece * p.pieces;
  Part<R, kForm != Form::weights> a;
  Part<R, kForm == Form::forward> b;
  const auto load = [&](int slice) {
    const int piece = slice / per_piece, k = slice % per_piece * kDepth;
    a.load(p.a[piece].of(task), p.M, p.K, i, k);
    b.load(p.b[piece].of(task), p.N, p.K, j, k);
  };
  Multiply multiply;
  R bias = 0;
  multiply_slices<R>(room, count, multiply, a, b, load, [&](int slice, const Slice<R, Square>& now) {
    if (kForm == Form::weights && j == 0 && threadIdx.x < kTileSide && slice < per_piece)
      for (int k = 0; k < kDepth; k++) bias += now.a[k][place(k, threadIdx.x)];
  });
  R of_elements = 0, of_bias = 0;
  const auto store = p.store.of(task, int64_t(p.M) * p.N);
  multiply.each(room, [&](int r, int c, R sum) {
    const int row = i + r, column = j + c;
    if (row < p.M && column < p.N) store(row * p.N + column, column, sum, of_elements);
  });
  if constexpr (kForm == Form::weights) {
    if (j == 0 && threadIdx.x < kTileSide && i + threadIdx.x < p.M && p.bias.asked()) p.bias.of(task)(i + threadIdx.x, bias, of_bias);
    if (!products.partial) return;
    const R all[2] = {block_sum(partials.of_warp, of_elements), block_sum(partials.of_warp, of_bias)};
    if (threadIdx.x < 2) products.partial[blockIdx.x * 2 + threadIdx.x] = threadIdx.x ? all[1] : all[0];
  }
}

}  // namespace fastmeta::cuda
