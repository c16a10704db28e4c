// Convolutions of many images as products of matrices. An image is cut into tiles of outputs; a tile's inputs become numbers at some
// points, [points, tiles, in], and so does the kernel, [points, in, out]; the products of both at each point make the outputs.
//
//   3 x 3, stride 1: Winograd's F(2 x 2, 3 x 3), of 16 points: 16 multiply-adds for four outputs in place of 36. With inputs d [4, 4]
//     and the kernel g, y [2, 2] = A'[(G g G') o (B' d B)] A; in one direction
//     B'd = (d0 - d2, d1 + d2, d2 - d1, d1 - d3), G g = (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2), A'm = (m0 + m1 + m2, m1 - m2 -
//     m3).
//   1 x 1: tiles of one output and one point, at which numbers are what they are.
//
// Gradients are the transposes of these linear maps: dm = A dy A' at the same points, dd = B (dm U') B', dg = G'(V' dm) G, with V, U
// the points of inputs and kernel. Source: Lavin & Gray 2016, arXiv:1509.09308.
#pragma once
#include "inner/conv.h"
#include "inner/cpu/matmul.h"

namespace fastmeta::FASTMETA_ISA {

struct ConvTiles {
  int64_t kernel, stride;               // 3 and 1, or 1
  int64_t rows, columns;                // tiles of an image
  int64_t height, width;                // of the outputs
  int64_t channels, out_channels;       // that the kernel has
  int64_t in, in_padded, out;           // channels in memory: of inputs, of gradients to them, of outputs
  int64_t x_height, x_width;            // from the first tile's first input to the end of an image
  int64_t x_first, x_row, x_size;       // that input; numbers from one row, and image, to the next
  int64_t in_height, in_width, border;  // gradients to inputs, dense, lie where the inputs do, without a border of zeros

  int64_t points() const { return kernel == 3 ? 16 : 1; }
  int64_t side() const { return kernel == 3 ? 2 : 1; }  // of a tile's outputs
  int64_t tiles() const { return rows * columns; }
  int64_t weights() const { return points() * in * out; }
};

// Numbers at points, [points, count, channels].
template <class R>
struct AtPoints {
  R* data;
  int64_t count;
  AtPoints from(int64_t first, int64_t channels) const { return {data + first * channels, count}; }
};

// The tiles [first, end) of images that follow each other, the first of them at x, z or dx. Beside them a pixel of zeros, and one that
// nobody reads.
template <class R>
struct Tiles {
  int64_t first, end;
  R *zeros, *unread;
};

template <class R>
void inputs_to_points(const ConvTiles& s, const Tiles<R>& tiles, const R* x, AtPoints<R> v);
// z, dense, = start + ...; start: of each channel, or null.
template <class R>
void points_to_outputs(const ConvTiles& s, const Tiles<R>& tiles, AtPoints<R> m, const R* start, R* z);
template <class R>
void gradients_to_points(const ConvTiles& s, const Tiles<R>& tiles, const R* dz, AtPoints<R> dm);
// dx += ...
template <class R>
void points_to_gradients(const ConvTiles& s, const Tiles<R>& tiles, AtPoints<R> dv, R* dx);

// The kernel [out, in, side, side] of a tensor: u [points, in, out], or turned around, [points, out, in]; for the rows [begin, end) of
// these.
template <class R>
void kernel_to_points(const ConvTiles& s, const R* kernel, bool turned, int64_t begin, int64_t end, R* u);
// The gradient to the kernel from du [points, in, out], for the rows [begin, end).
template <class R>
void points_to_kernel(const ConvTiles& s, const R* du, int64_t begin, int64_t end, R* dkernel);

}  // namespace fastmeta::FASTMETA_ISA
