// Norm, ReLU and max-pool of a block of all tasks, forward and back, with their tangents: bound by memory, no products.
//
// A norm's numbers are a set: of a channel in all images of a task (batch norm), or of a group of channels in one image. Of batch norms the
// convolutions leave the sums over tiles (conv_row_sums.cuh), which each block adds up in their order; then several blocks share a set's
// images out. Where there are none - group norm, whose sets stay in L2, and the gradient that comes from the linear layer - a block owns a
// set and sums over lanes, warps and planes (a channel of an image), the mean first and then the squares about it. Nothing that a norm
// makes of z is kept but mean, s and, of a window, z where it was won: all else is made again where it is read, by the same instructions,
// so that each pass finds the same winner.
//
// With u = (z - mean) s, y = gamma u + beta, e = gamma dy (dy: the gradient to y, 0 but for winners above 0), r... tangents:
//
//   forward           x = max(y, 0) at the winners
//   back              dz = s (e - mean(e) - u mean(e u))
//   tangents forward  ru = s (rz - mean(rz)) - u along, along = s mean(rz u);  ry = gamma ru + vgamma u + vbeta
//   tangents back     rdz = s (re - mean(re) - u mean(re u) - ru mean(e u) - u mean(e ru)) - along dz, re = gamma rdy + vgamma dy
#pragma once
#include <type_traits>

#include "inner/cuda/conv_row_sums.cuh"
#include "inner/cuda/mlp.cuh"

namespace fastmeta::cuda {

constexpr int kNormThreads = 256, kNormWarps = kNormThreads / kWarp;
constexpr int kTileColumns = 64;  // numbers of a tile's sums

struct NormShape {
  int images, channels, height, width, pool;
  int groups;      // sets of an image, or of all
  bool own, norm;  // own: each image has sets of its own
  bool relu;
  double eps;

  // Whether a bias before the norm goes with the mean.
  __device__ bool loses_bias() const { return norm && (!own || channels == groups); }
  __host__ __device__ int sets() const { return (own ? images : 1) * groups; }
  __device__ int planes() const { return own ? channels / groups : images; }  // of a set
  __device__ int pixels() const { return height * width; }
  __device__ int out_width() const { return width / pool; }
  __device__ int windows() const { return height / pool * out_width(); }
};

// Arrays of all tasks: z [T, images, channels, height, width]; x, d: of what the block hands on; statistics [T, sets, 2].
template <class R>
struct NormArguments {
  NormShape shape;
  TaskTensor<const R> gamma, beta, vgamma, vbeta;
  const R *z, *rz, *d, *rd;
  R *statistics, *rstatistics;      // mean, s; mean(rz), along
  R* out;                           // x, rx, dz or rdz
  const R *won, *rwon;              // forward: z and rz where windows were won, as x, where the products have left these
  R *of_gamma, *of_beta, *of_bias;  // gradients, or their tangents: of each plane, of_gamma and of_beta of a batch norm of each set
  const R *dgamma, *dbeta;          // of tangents of a batch norm: these sums of the gradients
  const R* sums;                    // [T, sets, kRowSums, tiles]; null: there are none
  int tiles, across;                // across: columns of an image there
  int chunks;                       // blocks of a set
};

// Of a window: its pixel, z there, and whether ReLU lets it through.
template <class R>
struct Winner {
  int at;
  R z;
  bool open;
};

// The block's set, and what its passes share.
template <class R>
struct Set {
  const NormArguments<R>& c;
  const NormShape& shape;
  R* partial;  // shared, one for each warp
  int64_t index, task;
  int set, chunk;
  R mean_of_z = 0, s = 1;

  __device__ Set(const NormArguments<R>& arguments, R* shared)
      : c(arguments),
        shape(c.shape),
        partial(shared),
        index(blockIdx.x / c.chunks),
        task(index / shape.sets()),
        set(int(index % shape.sets())),
        chunk(int(blockIdx.x % c.chunks)) {}
  // After forward.
  __device__ void load_statistics() {
    if (shape.norm) mean_of_z = c.statistics[index * 2], s = c.statistics[index * 2 + 1];
  }

  // Whether sums of the set are for one channel.
  __device__ bool of_channel() const { return !shape.own; }
  __device__ bool speaks() const { return threadIdx.x == 0 && chunk == 0; }
  __device__ R numbers() const { return R(int64_t(shape.planes()) * shape.pixels()); }
  __device__ R mean(R sum) const { return block_sum(partial, sum) / numbers(); }

  // Numbers of z in the columns below one; the k-th sum of a tile; and the sum of f(tile, its numbers) over all.
  __device__ __forceinline__ int below(int64_t column) const {
    const int64_t image = least(int(column / c.across), shape.images);
    return int(image * shape.pixels() + (image < shape.images ? least(int(column % c.across), shape.pixels()) : 0));
  }
  __device__ __forceinline__ R of_tile(int tile, int k) const { return c.sums[(index * kRowSums + k) * c.tiles + tile]; }
  template <class F>
  __device__ __forceinline__ R sum_of_tiles(F&& f) const {
    R sum = 0;
    for (int t = threadIdx.x; t < c.tiles; t += kNormThreads) {
      const int64_t first = int64_t(t) * kTileColumns;
      sum += f(t, R(below(first + kTileColumns) - below(first)));
    }
    return block_sum(partial, sum);
  }
  __device__ __forceinline__ R sum_of_tiles(int k) const {
    return sum_of_tiles([&](int t, R) { return of_tile(t, k); });
  }

  // f(channel, place of the plane among all) of the chunk's, a warp for each; all lanes together.
  template <class F>
  __device__ __forceinline__ void each_plane(F&& f) const {
    const int each = ceil_div(shape.planes(), c.chunks), end = least((chunk + 1) * each, shape.planes());
    for (int i = chunk * each + threadIdx.x / kWarp; i < end; i += kNormWarps) {
      const int image = shape.own ? set / shape.groups : i;
      const int channel = shape.own ? set % shape.groups * shape.planes() + i : set;
      f(channel, (task * shape.images + image) * shape.channels + channel);
    }
  }
  template <class F>
  __device__ __forceinline__ R sum_of_pixels(F&& f) const {
    R sum = 0;
    each_plane([&](int, int64_t plane) {
      for (int e = threadIdx.x % kWarp; e < shape.pixels(); e += kWarp) sum += f(plane * shape.pixels() + e);
    });
    return sum;
  }

  __device__ Channel<R> channel(int i) const {
    const R *gamma = c.gamma.of(task), *beta = c.beta.of(task);
    return {mean_of_z, s, gamma ? gamma[i] : R(1), beta ? beta[i] : R(0)};
  }

  // Of a window of a plane of z.
  __device__ __forceinline__ Winner<R> winner(const R* z, const Channel<R>& channel, int r, int column) const {
    const int first = r * shape.pool * shape.width + column * shape.pool;
    Winner<R> found{first, z[first], true};
    R best = rank_of(channel.gamma, found.z);
    for (int i = 1; i < shape.pool * shape.pool; i++) {
      const int at = first + i / shape.pool * shape.width + i % shape.pool;
      const R of_pixel = z[at], rank = rank_of(channel.gamma, of_pixel);
      if (beats(rank, at, best, found.at)) best = rank, found.at = at, found.z = of_pixel;
    }
    found.open = channel.open(shape.relu, found.z);
    return found;
  }

  // f(window, its winner) of a plane of z.
  template <class F>
  __device__ __forceinline__ void each_window(const R* z, const Channel<R>& channel, F&& f) const {
    for (int w = threadIdx.x % kWarp; w < shape.windows(); w += kWarp) {
      f(w, winner(z, channel, w / shape.out_width(), w % shape.out_width()));
    }
  }

  // f(pixel, its window where it has won there and is open, else -1) of a plane of z, windows that the edge cuts off too.
  template <class F>
  __device__ __forceinline__ void each_pixel(const R* z, const Channel<R>& channel, F&& f) const {
    const int across = ceil_div(shape.width, shape.pool), down = ceil_div(shape.height, shape.pool);
    for (int w = threadIdx.x % kWarp; w < across * down; w += kWarp) {
      const int r = w / across, column = w % across;
      const bool whole = r < shape.height / shape.pool && column < shape.out_width();
      const Winner<R> won = whole ? winner(z, channel, r, column) : Winner<R>{-1, 0, false};
      for (int i = 0; i < shape.pool * shape.pool; i++) {
        const int y = r * shape.pool + i / shape.pool, x = column * shape.pool + i % shape.pool;
        if (y >= shape.height || x >= shape.width) continue;
        const int at = y * shape.width + x;
        f(at, won.open && at == won.at ? r * shape.out_width() + column : -1);
      }
    }
  }

  // A plane's sum into one of the arrays of planes.
  __device__ __forceinline__ void put(R* array, int64_t plane, R sum) const {
    sum = warp_sum(sum);
    if (threadIdx.x % kWarp == 0) array[plane] = sum;
  }
};

template <class R>
struct NormPartials {
  R of_warp[kNormWarps];
};

// Mean and variance of z.
template <class R>
__device__ __forceinline__ R variance_of(Set<R>& set) {
  const NormArguments<R>& c = set.c;
  if (!c.sums) {
    const R mean = set.mean_of_z = set.mean(set.sum_of_pixels([&](int64_t e) { return c.z[e]; }));
    return set.mean(set.sum_of_pixels([&](int64_t e) { return (c.z[e] - mean) * (c.z[e] - mean); }));
  }
  const R mean = set.mean_of_z = set.sum_of_tiles([&](int t, R count) { return count * set.of_tile(t, 0); }) / set.numbers();
  const auto squares = [&](int t, R count) {
    const R off = set.of_tile(t, 0) - mean;
    return set.of_tile(t, 1) + count * off * off;
  };
  return set.sum_of_tiles(squares) / set.numbers();
}

template <class R>
__global__ void __launch_bounds__(kNormThreads, 2) norm_kernel(const __grid_constant__ NormArguments<R> c) {
  FASTMETA_SHARED(NormPartials<R>, partials);
  Set<R> set(c, partials.of_warp);
  if (c.shape.norm) {
    set.s = 1 / std::sqrt(variance_of(set) + R(c.shape.eps));
    if (set.speaks()) c.statistics[set.index * 2] = set.mean_of_z, c.statistics[set.index * 2 + 1] = set.s;
  }
  set.each_plane([&](int i, int64_t plane) {
    const Channel<R> channel = set.channel(i);
    const int64_t first = plane * c.shape.windows();
    const auto put = [&](int w, const Winner<R>& won) { c.out[first + w] = won.open ? channel.y(won.z) : R(0); };
    if (!c.won) return set.each_window(c.z + plane * c.shape.pixels(), channel, put);
    for (int w = threadIdx.x % kWarp; w < c.shape.windows(); w += kWarp) {
      const R z = c.won[first + w];
      put(w, {w, z, channel.open(c.shape.relu, z)});
    }
  });
}

template <class R>
struct GradientSums {
  R e = 0, eu = 0;  // means
};

// Of a set; and those of its planes, or of the channel, into their arrays.
template <class R>
__device__ __forceinline__ GradientSums<R> sums_of_gradients(const Set<R>& set) {
  const NormArguments<R>& c = set.c;
  GradientSums<R> of;
  R all_dy = 0, all_dyu = 0;
  if (c.sums) {
    all_dy = set.sum_of_tiles(0), all_dyu = set.sum_of_tiles(1);
    const R gamma = set.channel(set.set).gamma;
    of = {gamma * all_dy / set.numbers(), gamma * all_dyu / set.numbers()};
  } else {
    set.each_plane([&](int i, int64_t plane) {
      const Channel<R> channel = set.channel(i);
      const R *z = c.z + plane * c.shape.pixels(), *d = c.d + plane * c.shape.windows();
      R of_dy = 0, of_dyu = 0;
      set.each_window(z, channel, [&](int w, const Winner<R>& won) {
        const R dy = won.open ? d[w] : R(0);
        of_dy += dy;
        of_dyu += dy * channel.u(won.z);
      });
      of.e += channel.gamma * of_dy;
      of.eu += channel.gamma * of_dyu;
      all_dy += of_dy;
      all_dyu += of_dyu;
      if (set.of_channel()) return;
      set.put(c.of_beta, plane, of_dy);
      set.put(c.of_gamma, plane, of_dyu);
    });
    of = {set.mean(of.e), set.mean(of.eu)};
    if (set.of_channel()) all_dy = block_sum(set.partial, all_dy), all_dyu = block_sum(set.partial, all_dyu);
  }
  if (set.of_channel() && set.speaks()) c.of_beta[set.index] = all_dy, c.of_gamma[set.index] = all_dyu;
  return of;
}

template <class R>
__global__ void __launch_bounds__(kNormThreads, 2) norm_back_kernel(const __grid_constant__ NormArguments<R> c) {
  FASTMETA_SHARED(NormPartials<R>, partials);
  Set<R> set(c, partials.of_warp);
  set.load_statistics();
  GradientSums<R> of;
  if (c.shape.norm) of = sums_of_gradients(set);
  set.each_plane([&](int i, int64_t plane) {
    const Channel<R> channel = set.channel(i);
    const R *z = c.z + plane * c.shape.pixels(), *d = c.d + plane * c.shape.windows();
    R sum = 0;
    set.each_pixel(z, channel, [&](int at, int w) {
      R dz = w >= 0 ? channel.gamma * d[w] : R(0);
      if (c.shape.norm) dz = channel.s * (dz - of.e - channel.u(z[at]) * of.eu);
      c.out[plane * c.shape.pixels() + at] = dz;
      sum += dz;
    });
    set.put(c.of_bias, plane, c.shape.loses_bias() ? 0 * sum : sum);  // no number stays none
  });
}

}  // namespace fastmeta::cuda
