// Slices of the two matrices of a tile in shared memory, 16 deep, and the two ways in which a block multiplies them: on the ordinary
// units, or for float32 where TF32 is allowed on the tensor cores. Either keeps 32 sums in a thread's registers, and hands each out once:
// each(room, f) calls f(row, column, sum), with the tile's rows and columns; or spread(room) leaves them all in shared memory.
//
// Shape: a tile's rows and columns. Square: 64 x 64 by 128 threads; Low: 32 x 64 by 64 threads, each with as much to do.
#pragma once
#include "inner/cuda/matmul.cuh"
#include "inner/cuda/tensor_cores.cuh"

namespace fastmeta::cuda {

// From the registers, memory requests and bank conflicts that the gates count, not from a GPU (2026-11-25).
constexpr int kTileSide = 64, kDepth = 16, kTileThreads = 128;  // of a Square
constexpr int kLowSide = 32;                                    // rows of a Low one
constexpr int kPad = 8;                                         // of a row of a slice in shared memory

struct Square {
  static constexpr int kDown = kTileSide, kAcross = kTileSide, kThreads = kTileThreads;
};
struct Low {
  static constexpr int kDown = kLowSide, kAcross = kTileSide, kThreads = kTileThreads / 2;
};

template <class R>
struct alignas(16) Quad {
  R v[4];
};

// [depth][row], and [depth][column].
template <class R, class Shape>
struct Slice {
  R a[kDepth][Shape::kDown + kPad], b[kDepth][Shape::kAcross + kPad];
};

// A block's shared memory. One slice is written while the other is read; after the last, the sums may go to other threads in it.
template <class R, class Shape>
union alignas(16) Room {
  Slice<R, Shape> slices[2];
  R sums[Shape::kDown][Shape::kAcross + 2];
};

// Where a slice has row `row` at depth k: writers along the depth, a quad of it for each of 4 threads, are 8 banks apart.
__device__ __forceinline__ int place(int k, int row) { return row ^ k / 4 % 4 * 8; }

// A thread owns 8 neighbouring rows and every 16th column. Per step of the depth it reads 12 numbers for 32 multiply-adds.
template <class R, class TileShape>
struct OrdinaryUnits {
  using Shape = TileShape;
  static constexpr int kRows = 8, kColumns = 4, kAcross = Shape::kAcross / kColumns;
  R sums[kRows][kColumns] = {};

  __device__ __forceinline__ void add(const Slice<R, Shape>& s) {
    const int down = threadIdx.x / kAcross * kRows, across = threadIdx.x % kAcross;
#pragma unroll
    for (int k = 0; k < kDepth; k++) {
      Quad<R> a[kRows / 4];
      R b[kColumns];
#pragma unroll
      for (int q = 0; q < kRows / 4; q++) a[q] = *reinterpret_cast<const Quad<R>*>(&s.a[k][place(k, down) + 4 * q]);
#pragma unroll
      for (int c = 0; c < kColumns; c++) b[c] = s.b[k][place(k, across + c * kAcross)];
#pragma unroll
      for (int r = 0; r < kRows; r++)
#pragma unroll
        for (int c = 0; c < kColumns; c++) sums[r][c] = std::fma(a[r / 4].v[r % 4], b[c], sums[r][c]);
    }
  }

  template <class F>
  __device__ __forceinline__ void each(Room<R, Shape>&, F&& f) const {
    const int down = threadIdx.x / kAcross * kRows, across = threadIdx.x % kAcross;
#pragma unroll
    for (int r = 0; r < kRows; r++)
#pragma unroll
      for (int c = 0; c < kColumns; c++) f(down + r, across + c * kAcross, sums[r][c]);
  }

  __device__ __forceinline__ void spread(Room<R, Shape>& room) const {
    __syncthreads();
    each(room, [&](int r, int c, R sum) { room.sums[r][c] = sum; });
    __syncthreads();
  }
};

// A warp owns 32 rows and 32 columns, as 2 x 4 products of 16 rows and 8 columns. Rows g and g + 8 of the first and of the
// second are the tile's rows 4 g .. 4 g + 3, one load. Per 8 steps of the depth a thread loads 10 times for 8 products; no bank is
// met twice. Another thread hands a sum out, so that a warp writes 32 neighbours of a row at a time. With its own sums it would
// write 4 numbers in each of 8 rows, to twice as many sectors or more.
template <class TileShape>
struct TensorCores {
  using Shape = TileShape;
  struct alignas(8) Pair {
    float first, second;
  };
  static constexpr int kSide = 32, kDown = kSide / 16, kAcross = kSide / 8;
  static_assert(Shape::kAcross == 2 * kSide, "two warps side by side");
  float sums[kDown][kAcross][4] = {};

  __device__ __forceinline__ static int lane() { return threadIdx.x % kWarp; }
  __device__ __forceinline__ static int down() { return threadIdx.x / (2 * kWarp) * kSide + lane() / 4 * 4; }
  __device__ __forceinline__ static int across() { return threadIdx.x / kWarp % 2 * kSide; }

  __device__ __forceinline__ void add(const Slice<float, Shape>& s) {
#pragma unroll
    for (int k = 0; k < kDepth; k += 8) {
      Tf32 a[kDown][4], b[kAcross][2];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int first = k + 4 * half, depth = first + lane() % 4;
        const auto rows = *reinterpret_cast<const Quad<float>*>(&s.a[depth][place(first, down())]);
#pragma unroll
        for (int r = 0; r < 4; r++) a[r / 2][2 * half + r % 2] = to_tf32(rows.v[r]);
#pragma unroll
        for (int j = 0; j < kAcross; j++) b[j][half] = to_tf32(s.b[depth][place(first, across() + 8 * j + lane() / 4)]);
      }
#pragma unroll
      for (int i = 0; i < kDown; i++)
#pragma unroll
        for (int j = 0; j < kAcross; j++) multiply_add(a[i], b[j], sums[i][j]);
    }
  }

  __device__ __forceinline__ void spread(Room<float, Shape>& room) const {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kDown; i++)
#pragma unroll
      for (int j = 0; j < kAcross; j++)
#pragma unroll
        for (int r = 0; r < 2; r++)
          *reinterpret_cast<Pair*>(&room.sums[down() + 2 * i + r][across() + 8 * j + lane() % 4 * 2]) = {sums[i][j][2 * r],
                                                                                                         sums[i][j][2 * r + 1]};
    __syncthreads();
  }

  template <class F>
  __device__ __forceinline__ void each(Room<float, Shape>& room, F&& f) const {
    spread(room);
#pragma unroll 8
    for (int e = threadIdx.x; e < Shape::kDown * Shape::kAcross; e += Shape::kThreads)
      f(e / Shape::kAcross, e % Shape::kAcross, room.sums[e / Shape::kAcross][e % Shape::kAcross]);
  }
};

// Slice after slice of two factors, `count` of them: load(slice) brings a's and b's parts of one into registers while the last is
// multiplied. after(slice, its place in shared memory): once each.
template <class R, class Multiply, class A, class B, class Load, class After>
__device__ __forceinline__ void multiply_slices(Room<R, typename Multiply::Shape>& room, int count, Multiply& multiply, const A& a,
                                                const B& b, Load&& load, After&& after) {
  if (count) load(0);
  for (int slice = 0; slice < count; slice++) {
    Slice<R, typename Multiply::Shape>& now = room.slices[slice % 2];
    a.store(now.a);
    b.store(now.b);
    __syncthreads();
    if (slice + 1 < count) load(slice + 1);
    multiply.add(now);
    after(slice, now);
  }
}

}  // namespace fastmeta::cuda
