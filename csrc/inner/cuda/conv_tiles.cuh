// Convolutions of all tasks as products in the tiles of mlp_tile_memory.cuh, with no patch in memory.
//
//   conv_kernel         out [out, pixels of all images] = kernel [out, in 9] patches [in 9, pixels], and with the kernel turned around the
//                       gradient to the images: [in, pixels] = turned [in, out 9] patches of dz. A block owns 64 channels and 64 pixels,
//                       and leaves what a batch norm sums over them (conv_row_sums.cuh).
//   conv_weight_kernel  dkernel [out, in 9] = dz [out, pixels] patches' [pixels, in 9]. The pixels are divided among blocks; each writes
//                       its part of the sum, and gradient_kernel (conv_sums.cuh) adds them up in their order.
//
// Tiles have 32 channels where those of 64 would be empty by half (`low`). Each is a sum of two such products where tangents are asked for.
// A thread has the same pixel, or the same two taps, in all slices.
#pragma once
#include "inner/cuda/conv_row_sums.cuh"
#include "inner/cuda/mlp_tiles.cuh"

namespace fastmeta::cuda {

constexpr int kTaps = 9;            // of a kernel, 3 x 3
constexpr int kSplitSlices = 128;   // of 16 pixels, of a block's part of a kernel's gradient
constexpr int kWeightProducts = 4;  // layers of a launch

__host__ __device__ inline bool low(int channels) { return (channels - 1) % kTileSide < kLowSide; }

// Where output pixel (r, c) meets the images [channels, height, width] under tap (i, j): at (r up + i - shift) / down, if that is whole.
struct Patches {
  int channels, height, width;
  int out_width, pixels;  // of the outputs
  int up, down, shift;

  // Its place in a channel; negative: zeros lie there.
  __device__ __forceinline__ int at(int r, int c, int tap) const {
    int y = r * up + tap / 3 - shift, x = c * up + tap % 3 - shift;
    if (y < 0 || x < 0) return -1;
    if (down > 1) {
      if (y % down || x % down) return -1;
      y /= down, x /= down;
    }
    return y < height && x < width ? y * width + x : -1;
  }
  __device__ __forceinline__ int size() const { return channels * height * width; }
};

// An image's columns, in the order of its windows: rounded up, so that four neighbours are a window.
__host__ __device__ constexpr int whole_windows(int pixels) { return (pixels + 3) / 4 * 4; }

// The output's pixel of a column; image < 0: there is none.
struct Column {
  int image, r, c;

  // Pixel after pixel; or by_window: 2 x 2 after 2 x 2, then what is left of them to the right, then below.
  __device__ __forceinline__ Column(const Patches& p, bool by_window, int images, int column) {
    const int across = by_window ? whole_windows(p.pixels) : p.pixels, width = p.out_width;
    int i = column % across;
    image = column / across < images && i < p.pixels ? column / across : -1;
    r = i / width, c = i % width;
    if (!by_window) return;
    const int height = p.pixels / width, down = height / 2 * 2, pairs = width / 2;
    r = i / 4 / pairs * 2 + i % 4 / 2, c = i / 4 % pairs * 2 + i % 2;
    i -= down * pairs * 2;
    if (i < 0) return;
    r = i, c = width - 1;
    if (width % 2 && i < down) return;
    r = height - 1, c = i - (width % 2 ? down : 0);
  }
};

template <class R>
struct ConvProduct {
  int M, images, pieces;  // M: channels of the results; pieces: the number of products in the sum
  Patches patches;
  TaskTensor<const R> kernel[2], x[2];
  TaskTensor<const R> bias;
  Sinks<R> to;  // [images, M, pixels]
  RowSumsArguments<R> sums;

  __host__ __device__ bool by_window() const { return sums.won; }
  __host__ __device__ int columns() const { return images * (by_window() ? whole_windows(patches.pixels) : patches.pixels); }
  __host__ __device__ int depth() const { return patches.channels * kTaps; }
  template <class Shape>
  __host__ __device__ int64_t tiles() const {
    return int64_t(ceil_div(M, Shape::kDown)) * ceil_div(columns(), Shape::kAcross);
  }
};

// A slice of the kernel turned around, element (m, k): channel m of the inputs; k: channel and tap of the outputs.
template <class R, int kSide, int kThreads>
struct TurnedPart {
  static constexpr int kOwn = kSide * kDepth / kThreads;
  R own[kOwn];

  __device__ __forceinline__ static int row(int e) { return threadIdx.x / 4 + e / 4 * (kThreads / 4); }
  __device__ __forceinline__ static int depth(int e) { return threadIdx.x % 4 + e % 4 * 4; }

  __device__ __forceinline__ void load(const R* kernel, int M, int K, int first, int k) {
#pragma unroll
    for (int e = 0; e < kOwn; e++) {
      const int m = first + row(e), at = k + depth(e);
      own[e] = m < M && at < K ? kernel[(at / kTaps * M + m) * kTaps + kTaps - 1 - at % kTaps] : R(0);
    }
  }
  __device__ __forceinline__ void store(R (*slice)[kSide + kPad]) const {
#pragma unroll
    for (int e = 0; e < kOwn; e++) slice[depth(e)][place(depth(e), row(e))] = own[e];
  }
};

// A slice of patches, element (k, column): k: channel and tap of the images; column: pixel of the outputs, the thread's.
template <class R, int kSide, int kThreads, bool kTurned>
struct PatchPart {
  static constexpr int kOwn = kSide * kDepth / kThreads;
  R own[kOwn];
  int image, r, c;  // image < 0: beyond the last
  int first;        // where tap 0 meets a channel, or would
  unsigned inside;  // bit by bit: whether a tap meets one

  __device__ __forceinline__ static int column() { return threadIdx.x % kSide; }
  __device__ __forceinline__ static int depth(int e) { return threadIdx.x / kSide + e * (kThreads / kSide); }

  __device__ __forceinline__ PatchPart(const Patches& p, const Column& column) : image(column.image), r(column.r), c(column.c) {
    first = (r * p.up - p.shift) * p.width + c * p.up - p.shift;
    inside = 0;
    for (int tap = 0; tap < kTaps; tap++) inside |= unsigned(image >= 0 && p.at(r, c, tap) >= 0) << tap;
  }
  __device__ __forceinline__ void load(const R* x, const Patches& p, int k) {
    const R* from = x + int64_t(image) * p.size();
#pragma unroll
    for (int e = 0; e < kOwn; e++) {
      const int channel = (k + depth(e)) / kTaps, tap = (k + depth(e)) % kTaps;
      const int at = kTurned && p.down > 1 ? p.at(r, c, tap) : first + tap / 3 * p.width + tap % 3;
      own[e] = channel < p.channels && (inside >> tap & 1) ? from[channel * p.height * p.width + at] : R(0);
    }
  }
  __device__ __forceinline__ void store(R (*slice)[kSide + kPad]) const {
#pragma unroll
    for (int e = 0; e < kOwn; e++) slice[depth(e)][place(depth(e), column())] = own[e];
  }
};

template <class R, class Shape>
struct ColumnPlaces {
  // In the results and in the windows, of row 0; negative: there is none.
  int of[Shape::kAcross], window[Shape::kAcross];

  __device__ __forceinline__ void set(const Patches& p, int M, const Column& column) {
    const int width = p.out_width, height = p.pixels / width, place = threadIdx.x;
    const bool whole = column.r < height / 2 * 2 && column.c < width / 2 * 2;
    of[place] = column.image < 0 ? -1 : column.image * M * p.pixels + column.r * width + column.c;
    window[place] = column.image < 0 || !whole ? -1 : (column.image * M * (height / 2) + column.r / 2) * (width / 2) + column.c / 2;
  }
};

// A warp takes row after row of the tile, so that it writes 32 neighbours at a time.
template <class R, class Shape>
__device__ __forceinline__ void store_rows(const ConvProduct<R>& p, const Room<R, Shape>& room, const ColumnPlaces<R, Shape>& places,
                                           int64_t task, int i, int j) {
  constexpr int kOwn = Shape::kAcross / kWarp;
  const R* bias = p.bias.of(task);
  const Sink<R> to = p.to.of(task);
  const int lane = threadIdx.x % kWarp, pixels = p.patches.pixels, width = p.patches.out_width;
  const int windows = pixels / width / 2 * (width / 2);
  R none = 0;
  for (int r = threadIdx.x / kWarp; r < Shape::kDown && i + r < p.M; r += Shape::kThreads / kWarp) {
    const int channel = i + r;
    TileRow<R, kOwn> row;
#pragma unroll
    for (int o = 0; o < kOwn; o++) {
      const int column = lane + o * kWarp, place = places.of[column], window = places.window[column];
      row.at[o] = place < 0 ? -1 : place + channel * pixels;
      row.window[o] = window < 0 ? -1 : window + channel * windows;
      row.value[o] = bias ? room.sums[r][column] + bias[channel] : room.sums[r][column];
      if (place >= 0) to(row.at[o], row.value[o], none);
    }
    const int64_t rows = task * p.images * p.M;
    if (p.sums.sums)
      row_sums(
          p.sums, row,
          {task, rows * pixels, rows * windows, task * p.M + channel, channel, j / Shape::kAcross, ceil_div(p.columns(), Shape::kAcross)});
  }
}

template <class R, bool kTurned, class Multiply>
__global__ void __launch_bounds__(Multiply::Shape::kThreads, kTileBlocks<R, typename Multiply::Shape>)
    conv_kernel(const __grid_constant__ ConvProduct<R> p) {
  using Shape = typename Multiply::Shape;
  using Memory = Room<R, Shape>;
  using Places = ColumnPlaces<R, Shape>;
  FASTMETA_SHARED(Memory, room);
  FASTMETA_SHARED(Places, places);
  const int64_t task = blockIdx.x / p.template tiles<Shape>();
  const int tile = int(blockIdx.x % p.template tiles<Shape>()), down = ceil_div(p.M, Shape::kDown);
  const int i = tile % down * Shape::kDown, j = tile / down * Shape::kAcross;
  const int per_piece = ceil_div(p.depth(), kDepth);
  std::conditional_t<kTurned, TurnedPart<R, Shape::kDown, Shape::kThreads>, Part<R, true, Shape::kDown, Shape::kThreads>> a;
  using Columns = PatchPart<R, Shape::kAcross, Shape::kThreads, kTurned>;
  const Column column(p.patches, p.by_window(), p.images, j + Columns::column());
  Columns b(p.patches, column);
  if (threadIdx.x < Shape::kAcross) places.set(p.patches, p.M, column);
  const auto load = [&](int slice) {
    const int piece = slice / per_piece, k = slice % per_piece * kDepth;
    a.load(p.kernel[piece].of(task), p.M, p.depth(), i, k);
    b.load(p.x[piece].of(task), p.patches, k);
  };
  Multiply multiply;
  multiply_slices<R>(room, per_piece * p.pieces, multiply, a, b, load, [](int, const Slice<R, Shape>&) {});
  multiply.spread(room);
  store_rows<R, Shape>(p, room, places, task, i, j);
}

// One layer's, and how its pixels are divided.
template <class R>
struct ConvWeightProduct {
  int M, images, pieces;
  Patches patches;
  TaskTensor<const R> d[2], x[2];  // [images, M, pixels]; the images
  R* parts;                        // [T, splits, M, in 9]

  __host__ __device__ int N() const { return patches.channels * kTaps; }
  __host__ __device__ int slices_of_image() const { return ceil_div(patches.pixels, kDepth); }
  __host__ __device__ int slices() const { return images * slices_of_image(); }
  __host__ __device__ int splits() const { return ceil_div(slices(), kSplitSlices); }
  template <class Shape>
  __host__ __device__ int tiles_of_split() const {
    return ceil_div(M, Shape::kDown) * ceil_div(N(), Shape::kAcross);
  }
  template <class Shape>
  __host__ __device__ int64_t tiles() const {
    return int64_t(splits()) * tiles_of_split<Shape>();
  }
};

template <class R>
struct ConvWeightProducts {
  int count;
  int64_t tiles;  // of a task
  ConvWeightProduct<R> item[kWeightProducts];
};

// A slice of patches along the pixels, element (k, column): k: pixel of the outputs; column: channel and tap of the images.
template <class R, int kSide, int kThreads>
struct PixelPart {
  static constexpr int kOwn = kSide * kDepth / kThreads;
  R own[kOwn];

  __device__ __forceinline__ static int row(int e) { return TurnedPart<R, kSide, kThreads>::row(e); }
  __device__ __forceinline__ static int depth(int e) { return TurnedPart<R, kSide, kThreads>::depth(e); }

  __device__ __forceinline__ void load(const R* x, const Patches& p, int first, int image, int pixel) {
    const R* from = x + int64_t(image) * p.size();
#pragma unroll
    for (int e = 0; e < kOwn; e++) {
      const int channel = (first + row(e)) / kTaps, k = pixel + depth(e);
      const int at = p.at(k / p.out_width, k % p.out_width, (first + row(e)) % kTaps);
      own[e] = channel < p.channels && k < p.pixels && at >= 0 ? from[channel * p.height * p.width + at] : R(0);
    }
  }
  __device__ __forceinline__ void store(R (*slice)[kSide + kPad]) const {
#pragma unroll
    for (int e = 0; e < kOwn; e++) slice[depth(e)][place(depth(e), row(e))] = own[e];
  }
};

template <class R, class Multiply>
__global__ void __launch_bounds__(Multiply::Shape::kThreads, kTileBlocks<R, typename Multiply::Shape>)
    conv_weight_kernel(const __grid_constant__ ConvWeightProducts<R> products) {
  using Shape = typename Multiply::Shape;
  using Memory = Room<R, Shape>;
  FASTMETA_SHARED(Memory, room);
  const int64_t task = blockIdx.x / products.tiles;
  int64_t tile = blockIdx.x % products.tiles;
  int which = 0;
  while (tile >= products.item[which].template tiles<Shape>()) tile -= products.item[which++].template tiles<Shape>();
  const ConvWeightProduct<R>& p = products.item[which];
  const int split = int(tile / p.template tiles_of_split<Shape>()), within = int(tile % p.template tiles_of_split<Shape>());
  const int across = ceil_div(p.N(), Shape::kAcross), i = within / across * Shape::kDown, j = within % across * Shape::kAcross;
  const int begin = split * kSplitSlices, per_piece = least(kSplitSlices, p.slices() - begin);
  Part<R, true, Shape::kDown, Shape::kThreads> a;
  PixelPart<R, Shape::kAcross, Shape::kThreads> b;
  const auto load = [&](int slice) {
    const int piece = slice / per_piece, at = begin + slice % per_piece;
    const int image = at / p.slices_of_image(), pixel = at % p.slices_of_image() * kDepth;
    a.load(p.d[piece].of(task) + int64_t(image) * p.M * p.patches.pixels, p.M, p.patches.pixels, i, pixel);
    b.load(p.x[piece].of(task), p.patches, j, image, pixel);
  };
  Multiply multiply;
  multiply_slices<R>(room, per_piece * p.pieces, multiply, a, b, load, [](int, const Slice<R, Shape>&) {});
  R* part = p.parts + (task * p.splits() + split) * int64_t(p.M) * p.N();
  multiply.each(room, [&](int r, int c, R sum) {
    if (i + r < p.M && j + c < p.N()) part[(i + r) * p.N() + j + c] = sum;
  });
}

}  // namespace fastmeta::cuda
