// See conv_tiles.h.
#include "inner/cpu/conv_tiles.h"

#include "runtime/cpu/transpose.h"

#define INLINE __attribute__((always_inline))

namespace fastmeta::FASTMETA_ISA {
namespace {

// The maps in one direction, in place on numbers that lie `s` apart.
template <class V>
FASTMETA_INLINE void inputs(V* d, int s) {  // B' d
  const V a = d[0] - d[2 * s], b = d[s] + d[2 * s], c = d[2 * s] - d[s], e = d[s] - d[3 * s];
  d[0] = a, d[s] = b, d[2 * s] = c, d[3 * s] = e;
}
template <class V>
FASTMETA_INLINE void inputs_back(V* d, int s) {  // B v
  const V a = d[s] - d[2 * s] + d[3 * s], b = d[s] + d[2 * s] - d[0];
  d[s] = a, d[2 * s] = b, d[3 * s] = -d[3 * s];
}
template <class V>
FASTMETA_INLINE void outputs(V* m, int s) {  // A' m
  const V a = m[0] + m[s] + m[2 * s], b = m[s] - m[2 * s] - m[3 * s];
  m[0] = a, m[s] = b;
}
template <class V>
FASTMETA_INLINE void outputs_back(V* y, int s) {  // A y
  const V a = y[0] + y[s], b = y[0] - y[s];
  y[3 * s] = -y[s], y[s] = a, y[2 * s] = b;
}
template <class V>
FASTMETA_INLINE void kernel(V* g, int s) {  // G g
  const V sum = (g[0] + g[2 * s]) * 0.5f, half = g[s] * 0.5f;
  g[3 * s] = g[2 * s], g[s] = sum + half, g[2 * s] = sum - half;
}
template <class V>
FASTMETA_INLINE void kernel_back(V* u, int s) {  // G' u
  const V sum = (u[s] + u[2 * s]) * 0.5f, off = (u[s] - u[2 * s]) * 0.5f;
  u[0] += sum, u[s] = off, u[2 * s] = u[3 * s] + sum;
}

// f along the first `rows` columns of d [4, 4], then along the first `columns` rows.
template <int rows, int columns, class V, class F>
FASTMETA_INLINE void both_ways(V* d, F&& f) {
#pragma GCC unroll 4
  for (int j = 0; j < columns; j++) f(d + j, 4);
#pragma GCC unroll 4
  for (int i = 0; i < rows; i++) f(d + 4 * i, 1);
}

// Calls f(image, row, column, place among the tiles) for every tile.
template <class R, class F>
FASTMETA_INLINE void for_each_tile(const ConvTiles& s, const Tiles<R>& tiles, F&& f) {
  int64_t image = tiles.first / s.tiles(), row = tiles.first % s.tiles() / s.columns, column = tiles.first % s.columns;
  for (int64_t k = 0; k < tiles.end - tiles.first; k++) {
    f(image, row, column, k);
    if (++column < s.columns) continue;
    column = 0;
    if (++row == s.rows) row = 0, image++;
  }
}

// Of a dense image's outputs, where those of a tile begin.
FASTMETA_INLINE int64_t first_output(const ConvTiles& s, int64_t image, int64_t row, int64_t column) {
  return ((image * s.height + s.side() * row) * s.width + s.side() * column) * s.out;
}

// The numbers of a tile of `side` x `side` from its first on, in an image of so many rows and columns; outside it `outside`.
template <int side, class P>
FASTMETA_INLINE void places(P* first, int64_t row, int64_t height, int64_t column, int64_t width, int64_t of_row, int64_t of_column,
                            P* outside, P** found) {
#pragma GCC unroll 4
  for (int64_t i = 0; i < side; i++)
#pragma GCC unroll 4
    for (int64_t j = 0; j < side; j++) {
      const bool inside = row + i >= 0 && row + i < height && column + j >= 0 && column + j < width;
      found[side * i + j] = inside ? first + i * of_row + j * of_column : outside;
    }
}

}  // namespace

template <class R>
void inputs_to_points(const ConvTiles& s, const Tiles<R>& tiles, const R* x, AtPoints<R> v) {
  for_each_tile(s, tiles, [&](int64_t image, int64_t row, int64_t column, int64_t k) INLINE {
    const int64_t step = s.kernel == 3 ? 2 : s.stride;
    const R* first = x + image * s.x_size + s.x_first + step * (row * s.x_row + column * s.in);
    R* to = v.data + k * s.in;
    if (s.kernel == 1) return void(std::memcpy(to, first, size_t(s.in) * sizeof(R)));
    const R* from[16];
    places<4, const R>(first, 2 * row, s.x_height, 2 * column, s.x_width, s.x_row, s.in, tiles.zeros, from);
    for (int64_t c = 0; c < s.in; c += kLanes<R>) {
      Vector<R> d[16];
#pragma GCC unroll 16
      for (int p = 0; p < 16; p++) d[p] = load(from[p] + c);
      both_ways<4, 4>(d, [](Vector<R>* at, int apart) INLINE { inputs(at, apart); });
#pragma GCC unroll 16
      for (int p = 0; p < 16; p++) store(to + p * v.count * s.in + c, d[p]);
    }
  });
}

template <class R>
void points_to_outputs(const ConvTiles& s, const Tiles<R>& tiles, AtPoints<R> m, const R* start, R* z) {
  for_each_tile(s, tiles, [&](int64_t image, int64_t row, int64_t column, int64_t k) INLINE {
    R* first = z + first_output(s, image, row, column);
    const R* from = m.data + k * s.out;
    R* to[4] = {first};
    if (s.kernel == 3) places<2>(first, 2 * row, s.height, 2 * column, s.width, s.width * s.out, s.out, tiles.unread, to);
    for (int64_t c = 0; c < s.out; c += kLanes<R>) {
      const Vector<R> bias = start ? load(start + c) : Vector<R>{};
      if (s.kernel == 1) {
        store(first + c, load(from + c) + bias);
        continue;
      }
      Vector<R> d[16];
#pragma GCC unroll 16
      for (int p = 0; p < 16; p++) d[p] = load(from + p * m.count * s.out + c);
      both_ways<2, 4>(d, [](Vector<R>* at, int apart) INLINE { outputs(at, apart); });
#pragma GCC unroll 4
      for (int p = 0; p < 4; p++) store(to[p] + c, d[p / 2 * 4 + p % 2] + bias);
    }
  });
}

template <class R>
void gradients_to_points(const ConvTiles& s, const Tiles<R>& tiles, const R* dz, AtPoints<R> dm) {
  for_each_tile(s, tiles, [&](int64_t image, int64_t row, int64_t column, int64_t k) INLINE {
    const R* first = dz + first_output(s, image, row, column);
    R* to = dm.data + k * s.out;
    if (s.kernel == 1) return void(std::memcpy(to, first, size_t(s.out) * sizeof(R)));
    const R* from[4];
    places<2, const R>(first, 2 * row, s.height, 2 * column, s.width, s.width * s.out, s.out, tiles.zeros, from);
    for (int64_t c = 0; c < s.out; c += kLanes<R>) {
      Vector<R> d[16];
#pragma GCC unroll 4
      for (int p = 0; p < 4; p++) d[p / 2 * 4 + p % 2] = load(from[p] + c);
      both_ways<4, 2>(d, [](Vector<R>* at, int apart) INLINE { outputs_back(at, apart); });
#pragma GCC unroll 16
      for (int p = 0; p < 16; p++) store(to + p * dm.count * s.out + c, d[p]);
    }
  });
}

template <class R>
void points_to_gradients(const ConvTiles& s, const Tiles<R>& tiles, AtPoints<R> dv, R* dx) {
  const int64_t of_row = s.in_width * s.in_padded, step = s.kernel == 3 ? 2 : s.stride;
  for_each_tile(s, tiles, [&](int64_t image, int64_t tile_row, int64_t tile_column, int64_t k) INLINE {
    const int64_t row = step * tile_row - s.border, column = step * tile_column - s.border;
    R* first = dx + image * s.in_height * of_row + row * of_row + column * s.in_padded;
    const R* from = dv.data + k * s.in_padded;
    R* to[16] = {first};
    if (s.kernel == 3) places<4>(first, row, s.in_height, column, s.in_width, of_row, s.in_padded, tiles.unread, to);
    for (int64_t c = 0; c < s.in_padded; c += kLanes<R>) {
      if (s.kernel == 1) {
        store(first + c, load(first + c) + load(from + c));
        continue;
      }
      Vector<R> d[16];
#pragma GCC unroll 16
      for (int p = 0; p < 16; p++) d[p] = load(from + p * dv.count * s.in_padded + c);
      both_ways<4, 4>(d, [](Vector<R>* at, int apart) INLINE { inputs_back(at, apart); });
#pragma GCC unroll 16
      for (int p = 0; p < 16; p++) store(to[p] + c, load(to[p] + c) + d[p]);
    }
  });
}

template <class R>
void kernel_to_points(const ConvTiles& s, const R* tensor, bool turned, int64_t begin, int64_t end, R* u) {
  const int64_t taps = s.kernel * s.kernel, rows = turned ? s.out : s.in, width = turned ? s.in_padded : s.out;
  const int64_t real_rows = turned ? s.out_channels : s.channels, real_width = turned ? s.channels : s.out_channels;
  const int64_t of_row = turned ? s.channels * taps : taps, of_column = turned ? taps : s.channels * taps;
  for (int64_t j = 0; j < width; j += kLanes<R>)
    for (int64_t i = begin; i < end; i++) {
      R of_tap[9 * kLanes<R>] = {};
      if (i < real_rows && j < real_width)
        transpose(least(kLanes<R>, real_width - j), taps, tensor + i * of_row + j * of_column, of_column, of_tap, kLanes<R>);
      R* to = u + i * width + j;
      if (taps == 1) {
        store(to, load(of_tap));
        continue;
      }
      Vector<R> g[16];
#pragma GCC unroll 9
      for (int tap = 0; tap < 9; tap++) g[tap / 3 * 4 + tap % 3] = load(of_tap + tap * kLanes<R>);
      both_ways<4, 3>(g, [](Vector<R>* at, int apart) INLINE { kernel(at, apart); });
#pragma GCC unroll 16
      for (int p = 0; p < 16; p++) store(to + p * rows * width, g[p]);
    }
}

template <class R>
void points_to_kernel(const ConvTiles& s, const R* du, int64_t begin, int64_t end, R* dtensor) {
  const int64_t taps = s.kernel * s.kernel;
  for (int64_t j = 0; j < s.out; j += kLanes<R>)
    for (int64_t i = begin; i < least(end, s.channels); i++) {
      const R* from = du + i * s.out + j;
      Vector<R> u[16] = {load(from)};
      if (taps == 9) {
#pragma GCC unroll 16
        for (int p = 1; p < 16; p++) u[p] = load(from + p * s.in * s.out);
        both_ways<3, 4>(u, [](Vector<R>* at, int apart) INLINE { kernel_back(at, apart); });
      }
      R of_tap[9 * kLanes<R>], of_lane[9 * kLanes<R>];
      for (int64_t tap = 0; tap < taps; tap++) store(of_tap + tap * kLanes<R>, u[tap / 3 * 4 + tap % 3]);
      transpose(taps, kLanes<R>, of_tap, kLanes<R>, of_lane, taps);
      for (int64_t lane = 0; lane < least(kLanes<R>, s.out_channels - j); lane++)
        std::memcpy(dtensor + ((j + lane) * s.channels + i) * taps, of_lane + lane * taps, size_t(taps) * sizeof(R));
    }
}

#define INSTANTIATE(R)                                                                              \
  template void inputs_to_points<R>(const ConvTiles&, const Tiles<R>&, const R*, AtPoints<R>);      \
  template void points_to_outputs<R>(const ConvTiles&, const Tiles<R>&, AtPoints<R>, const R*, R*); \
  template void gradients_to_points<R>(const ConvTiles&, const Tiles<R>&, const R*, AtPoints<R>);   \
  template void points_to_gradients<R>(const ConvTiles&, const Tiles<R>&, AtPoints<R>, R*);         \
  template void kernel_to_points<R>(const ConvTiles&, const R*, bool, int64_t, int64_t, R*);        \
  template void points_to_kernel<R>(const ConvTiles&, const R*, int64_t, int64_t, R*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
