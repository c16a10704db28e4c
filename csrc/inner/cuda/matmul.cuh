// C = A B for the small matrices of one task, by one block, in shared or global memory alike.
//
// `outer_tiles`: a thread owns a T x T tile of C in registers; neighbours own neighbouring columns, so rows of B are read
// without conflicts and A by broadcast. `dot_tiles`, where the inner dimension is contiguous in both: 16 lanes own a tile and
// share out the inner dimension, so that a long product with few results still fills the block; halving shuffles leave every
// lane with its own results. Loads per multiply-add: 2 / T. With the tangents of A and B, 4 loads feed 3 multiply-adds: the
// product and its derivative together. The order of every sum depends on the sizes alone.
#pragma once
#include <cmath>

#include "runtime/cuda/launch.h"

namespace fastmeta::cuda {

constexpr int kWarp = 32, kGroup = 16;
constexpr unsigned kAllLanes = 0xffffffffu;
// From the registers and bank conflicts that the gates count, not from a GPU (2026-11-24).
constexpr int kShortSum = 64;    // long sums are sums of short ones, so that errors do not grow with their length
constexpr int kMinDot = kGroup;  // inner dimension from which lanes share it; below, strided columns conflict little

template <class R>
constexpr int kTile = sizeof(R) == 4 ? 4 : 2;  // double needs twice the registers

enum class Terms { value, tangent, both };  // A B; RA B + A RB; both

template <Terms kTerms>
constexpr int kUnroll = kTerms == Terms::value ? 4 : 1;  // as far as the registers go

// A(i, k) = a[i * ai + k * ak], B(k, j) = b[k * bk + j * bj]; ra, rb: their tangents, laid out alike.
template <class R>
struct Factors {
  const R *a, *b, *ra, *rb;
  int ai, ak, bk, bj;
};

__host__ __device__ constexpr int least(int a, int b) { return a < b ? a : b; }
__host__ __device__ constexpr int ceil_div(int a, int b) { return a / b + (a % b != 0); }

template <class R, Terms kTerms, int T>
struct Tile {
  static constexpr bool kValue = kTerms != Terms::tangent, kTangent = kTerms != Terms::value;
  R value[T * T] = {}, tangent[T * T] = {};

  __device__ __forceinline__ void add(const Tile& other) {
#pragma unroll
    for (int e = 0; e < T * T; e++) {
      value[e] += other.value[e];
      tangent[e] += other.tangent[e];
    }
  }

  // One step of the inner dimension; a, b: offsets of the tile's rows and columns there.
  __device__ __forceinline__ void add(const Factors<R>& f, const int (&a)[T], const int (&b)[T], int ka, int kb) {
    R fa[T], fb[T], ra[T], rb[T];
#pragma unroll
    for (int r = 0; r < T; r++) {
      fa[r] = f.a[a[r] + ka];
      fb[r] = f.b[b[r] + kb];
      ra[r] = kTangent ? f.ra[a[r] + ka] : R(0);
      rb[r] = kTangent ? f.rb[b[r] + kb] : R(0);
    }
#pragma unroll
    for (int r = 0; r < T; r++)
#pragma unroll
      for (int c = 0; c < T; c++) {
        const int e = r * T + c;
        if constexpr (kValue) value[e] = std::fma(fa[r], fb[c], value[e]);
        if constexpr (kTangent) tangent[e] = std::fma(ra[r], fb[c], std::fma(fa[r], rb[c], tangent[e]));
      }
  }
};

// Rows i + r * rows, r < T, of a matrix with `limit` rows, as offsets; rows beyond the end repeat the last.
template <int T>
__device__ __forceinline__ void offsets(int (&found)[T], int i, int rows, int limit, int stride, int shift = 0) {
#pragma unroll
  for (int r = 0; r < T; r++) found[r] = least(i + r * rows, limit - 1) * stride + shift;
}

template <class R, Terms kTerms, int T, class MakeStore>
__device__ __forceinline__ void outer_tiles(int M, int N, int K, const Factors<R>& f, MakeStore&& make_store) {
  const int rows = ceil_div(M, T), columns = ceil_div(N, T);
  for (int t = threadIdx.x; t < rows * columns; t += blockDim.x) {
    const int i = t / columns, j = t % columns;
    int a[T], b[T];
    offsets(a, i, rows, M, f.ai);
    offsets(b, j, columns, N, f.bj);
    Tile<R, kTerms, T> tile;
    for (int begin = 0; begin < K; begin += kShortSum) {
      const int end = least(begin + kShortSum, K);
      Tile<R, kTerms, T> part;
#pragma unroll kUnroll < kTerms>
      for (int k = begin; k < end; k++) part.add(f, a, b, k * f.ak, k * f.bk);
      tile.add(part);
    }
    const auto store = make_store();
#pragma unroll
    for (int e = 0; e < T * T; e++)
      if (i + e / T * rows < M && j + e % T * columns < N) store(i + e / T * rows, j + e % T * columns, tile.value[e], tile.tangent[e]);
  }
}

// The sums over a group's lanes of v[0 .. C): lane g gets that of element g / (kGroup / C) in v[0]. At every offset the lanes
// halve what they hold.
template <int kCount, int kOffset, class R, int C>
__device__ __forceinline__ void share_sums(R (&v)[C], int lane) {
  if constexpr (kOffset > 0) {
    const bool upper = lane & kOffset;
    if constexpr (kCount > 1) {
#pragma unroll
      for (int e = 0; e < kCount / 2; e++) {
        const R sent = upper ? v[e] : v[e + kCount / 2];
        v[e] = (upper ? v[e + kCount / 2] : v[e]) + __shfl_xor_sync(kAllLanes, sent, kOffset);
      }
    } else {
      v[0] += __shfl_xor_sync(kAllLanes, v[0], kOffset);
    }
    share_sums<kCount / 2, kOffset / 2>(v, lane);
  }
}

template <class R, Terms kTerms, int T, class MakeStore>
__device__ __forceinline__ void dot_tiles(int M, int N, int K, const Factors<R>& f, MakeStore&& make_store) {
  const int rows = ceil_div(M, T), columns = ceil_div(N, T), tiles = rows * columns;
  const int lane = threadIdx.x % kGroup, half = threadIdx.x / kGroup % 2;
  const int shift = K % kWarp ? 0 : half * kGroup;  // a warp's second group goes round by one: off the first one's banks
  const int e = lane / (kGroup / (T * T));
  for (int first = threadIdx.x / kWarp * 2; first < tiles; first += blockDim.x / kGroup) {  // alike in a whole warp
    const int t = least(first + half, tiles - 1), i = t / columns, j = t % columns;
    int a[T], b[T];
    offsets(a, i, rows, M, f.ai, shift);
    offsets(b, j, columns, N, f.bj, shift);
    Tile<R, kTerms, T> tile;
    int k = lane;
#pragma unroll kUnroll < kTerms>
    for (; k < K - kGroup; k += kGroup) tile.add(f, a, b, k, k);
    k = shift ? lane - shift : k;
    tile.add(f, a, b, k, k);
    if constexpr (tile.kValue) share_sums<T * T, kGroup / 2>(tile.value, lane);
    if constexpr (tile.kTangent) share_sums<T * T, kGroup / 2>(tile.tangent, lane);
    const auto store = make_store();
    const int row = i + e / T * rows, column = j + e % T * columns;
    if (first + half < tiles && lane % (kGroup / (T * T)) == 0 && row < M && column < N) store(row, column, tile.value[0], tile.tangent[0]);
  }
}

// make_store()(i, j, (A B)_ij, its tangent) once for every element of C [M, N], by any thread. It is made when a tile is summed,
// so that what it holds takes no registers from the sums. kDot: A and B lie along the inner dimension, ak = bk = 1.
template <class R, Terms kTerms, bool kDot, class MakeStore>
__device__ __forceinline__ void multiply(int M, int N, int K, const Factors<R>& f, MakeStore&& make_store) {
  if constexpr (kDot)
    if (K >= kMinDot) return dot_tiles<R, kTerms, kTile<R>>(M, N, K, f, make_store);
  if constexpr (kTile<R> > 2)
    if (ceil_div(M, kTile<R>) * ceil_div(N, kTile<R>) * 2 < int(blockDim.x))  // too few tiles to fill the block
      return outer_tiles<R, kTerms, 2>(M, N, K, f, make_store);
  outer_tiles<R, kTerms, kTile<R>>(M, N, K, f, make_store);
}

template <class R>
__device__ __forceinline__ R warp_sum(R v) {
#pragma unroll
  for (int offset = kWarp / 2; offset; offset /= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
  return v;
}

template <class R>
__device__ __forceinline__ R warp_max(R v) {
#pragma unroll
  for (int offset = kWarp / 2; offset; offset /= 2) {
    const R other = __shfl_xor_sync(kAllLanes, v, offset);
    v = other > v ? other : v;
  }
  return v;
}

}  // namespace fastmeta::cuda
