// Convolutions of one image by k x k kernels, channels last, without a copy of the image: with the zeros around it in memory, the
// k taps of a kernel's row that a pixel meets are k * in neighbouring numbers, and pixels of a row follow each other. So a row
// of outputs is k products (matmul.h), a tile of them, pixels by vectors of channels, stays in registers. The kernel's gradient
// is the same product with the pixels as its inner dimension: a tile of [taps, channels] passes over the whole image.
#pragma once
#include "inner/cpu/matmul.h"

namespace fastmeta::FASTMETA_ISA {

constexpr int kConvAcross = 2;  // vectors of channels in a tile
template <class R>              // its pixels or taps; half of them for double: less to compile
constexpr int kConvRows = (kRegisters == 32 ? 14 : 6) / (sizeof(R) == 4 ? 1 : 2);

constexpr int64_t kShort = 32;  // taps of a row: more are a sum of their own, so that errors stay small, for a few loads more

// The images of a convolution: rows of x that outputs and taps meet, in numbers.
struct ConvShape {
  int64_t height, width, channels;  // of the outputs
  int64_t x_row, x_pixel;           // from one output's first tap to the next's
  int64_t tap_row, taps, tap_rows;  // from one row of taps to the next; numbers of one; how many
  int64_t runs, run;                // a row of taps is so many runs, whose first so many numbers are no padding
  int64_t y_row, y_pixel;           // from one output to the next
};

template <class R>
struct ConvSource {
  const R *x, *w;  // w [tap_rows, taps, channels]
};

// y = start + the sources' convolutions; start: for each channel, or null.
template <class R>
void convolve(const ConvShape& s, const ConvSource<R>* sources, int count, const R* start, R* y) {
  const int64_t together = s.taps < kShort ? s.tap_rows : 1;  // rows of taps in one sum
  for (int64_t row = 0; row < s.height; row++)
    for_each_part<kConvAcross>(0, s.channels / kLanes<R>, [&](auto across, int64_t vector) __attribute__((always_inline)) {
      const int64_t j = vector * kLanes<R>;
      for_each_part<kConvRows<R>>(0, s.width, [&](auto down, int64_t i) __attribute__((always_inline)) {
        constexpr int M = decltype(down)::value, V = decltype(across)::value;
        const R* from = start ? start + j : nullptr;
        int64_t from_row = 0;
        R* to = y + row * s.y_row + i * s.y_pixel + j;
        for (const ConvSource<R>* source = sources; source < sources + count; source++)
          for (int64_t first = 0; first < s.tap_rows; first += together) {
            Vector<R> sum[M][V] = {};
            for (int64_t k = first; k < first + together; k++)
              for (int64_t tap = 0; tap < s.taps; tap += s.taps / s.runs)
                accumulate<R, M, V>(sum, source->x + row * s.x_row + i * s.x_pixel + k * s.tap_row + tap, s.x_pixel, 1,
                                    source->w + (k * s.taps + tap) * s.channels + j, s.channels, s.run);
#pragma GCC unroll 14
            for (int m = 0; m < M; m++)
#pragma GCC unroll 2
              for (int v = 0; v < V; v++)
                store(to + m * s.y_pixel + v * kLanes<R>, from ? load(from + m * from_row + v * kLanes<R>) + sum[m][v] : sum[m][v]);
            from = to, from_row = s.y_pixel;
          }
      });
    });
}

template <class R, int count>
inline void convolve(const ConvShape& s, const ConvSource<R> (&sources)[count], const R* start, R* y) {
  convolve<R>(s, sources, count, start, y);
}

template <class R>
struct ConvPair {
  const R *x, *dy;
};

// dw [tap_rows, taps, channels] += what the pairs of inputs and gradients to the outputs make of the kernel's gradient.
template <class R>
void correlate(const ConvShape& s, const ConvPair<R>* pairs, int count, R* dw) {
  for (int64_t k = 0; k < s.tap_rows * s.runs; k++) {
    const int64_t tap = k / s.runs, first = k % s.runs * (s.taps / s.runs);
    for_each_part<kConvAcross>(0, s.channels / kLanes<R>, [&](auto across, int64_t vector) __attribute__((always_inline)) {
      const int64_t j = vector * kLanes<R>;
      for_each_part<kConvRows<R>>(first, first + s.run, [&](auto down, int64_t i) __attribute__((always_inline)) {
        constexpr int M = decltype(down)::value, V = decltype(across)::value;
        R* to = dw + (tap * s.taps + i) * s.channels + j;
        Vector<R> sum[M][V];
#pragma GCC unroll 14
        for (int m = 0; m < M; m++)
#pragma GCC unroll 2
          for (int v = 0; v < V; v++) sum[m][v] = Vector<R>{};
        for (int pair = 0; pair < count; pair++)
          for (int64_t row = 0; row < s.height; row++)
            accumulate<R, M, V>(sum, pairs[pair].x + row * s.x_row + tap * s.tap_row + i, 1, s.x_pixel, pairs[pair].dy + row * s.y_row + j,
                                s.y_pixel, s.width);
#pragma GCC unroll 14
        for (int m = 0; m < M; m++)
#pragma GCC unroll 2
          for (int v = 0; v < V; v++) {
            R* place = to + m * s.channels + v * kLanes<R>;
            store(place, load(place) + sum[m][v]);  // a sum of short sums
          }
      });
    });
  }
}

template <class R, int count>
inline void correlate(const ConvShape& s, const ConvPair<R> (&pairs)[count], R* dw) {
  correlate<R>(s, pairs, count, dw);
}

// The way back through a convolution: dz [height, width, padded], dx [x_height, x_width, in], dense.
struct ConvBack {
  int64_t height, width, channels, padded;  // of dz, and its channels in memory
  int64_t kernel, stride, padding;
  int64_t x_height, x_width, in;
};

constexpr int64_t kBackPixels = 112;  // of dz that stay in the first cache while the taps pass

// dx += what the sources, dz and w [kernel, kernel, padded, in], make of it: each tap takes dz, in a product over its channels, to the
// pixels that it came from. So no product has a zero of a stride or a border in it.
template <class R>
void convolve_back(const ConvBack& s, const ConvSource<R>* sources, int count, R* dx) {
  const int64_t pixels = s.height * s.width;
  for (int64_t begin = 0; begin < pixels; begin += kBackPixels)
    for (int64_t tap = 0; tap < s.kernel * s.kernel; tap++)
      for_each_part<kConvAcross>(0, s.in / kLanes<R>, [&](auto across, int64_t vector) __attribute__((always_inline)) {
        const int64_t j = vector * kLanes<R>;
        for_each_part<kConvRows<R>>(begin, least(pixels, begin + kBackPixels), [&](auto down, int64_t i) __attribute__((always_inline)) {
          constexpr int M = decltype(down)::value, V = decltype(across)::value;
          Vector<R> sum[M][V] = {};
          for (const ConvSource<R>* source = sources; source < sources + count; source++)
            accumulate<R, M, V>(sum, source->x + i * s.padded, s.padded, 1, source->w + tap * s.padded * s.in + j, s.in, s.channels);
          const int64_t first = tap % s.kernel - s.padding;
          int64_t row = s.stride * (i / s.width) + tap / s.kernel - s.padding, column = s.stride * (i % s.width) + first;
#pragma GCC unroll 14
          for (int m = 0; m < M; m++) {
            R* place = dx + (row * s.x_width + column) * s.in + j;
            if (row >= 0 && row < s.x_height && column >= 0 && column < s.x_width)
#pragma GCC unroll 2
              for (int v = 0; v < V; v++) store(place + v * kLanes<R>, load(place + v * kLanes<R>) + sum[m][v]);
            column += s.stride;
            if (column == s.stride * s.width + first) column = first, row += s.stride;
          }
        });
      });
}

template <class R, int count>
inline void convolve_back(const ConvBack& s, const ConvSource<R> (&sources)[count], R* dx) {
  convolve_back<R>(s, sources, count, dx);
}

// Compiled once, in convolve.cpp: they expand to many tiles.
#define FASTMETA_CONVOLVE(EXTERN, R)                                                           \
  EXTERN template void convolve<R>(const ConvShape&, const ConvSource<R>*, int, const R*, R*); \
  EXTERN template void correlate<R>(const ConvShape&, const ConvPair<R>*, int, R*);            \
  EXTERN template void convolve_back<R>(const ConvBack&, const ConvSource<R>*, int, R*);
FASTMETA_CONVOLVE(extern, float)
FASTMETA_CONVOLVE(extern, double)

}  // namespace fastmeta::FASTMETA_ISA
