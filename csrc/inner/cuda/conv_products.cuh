// The products of a conv op's passes: what a block's convolution, its gradients and its norm are told.
#pragma once
#include "inner/cuda/conv_layers.h"
#include "inner/cuda/conv_norm.cuh"
#include "inner/cuda/conv_tiles.cuh"

namespace fastmeta::cuda::layerwise {

inline Patches patches_of(const ConvBlock& b) {
  return {int(b.in), int(b.height), int(b.width), int(b.conv_width()), int(b.conv_height() * b.conv_width()), int(b.stride),
          1,         int(b.padding)};
}

// Of dz, that an input's pixel meets under the kernel turned around.
inline Patches turned_of(const ConvBlock& b) {
  return {int(b.out), int(b.conv_height()), int(b.conv_width()), int(b.width), int(b.height * b.width),
          1,          int(b.stride),        2 - int(b.padding)};
}

inline NormShape norm_shape(const ConvBlock& b, int64_t n) {
  return {int(n),      int(b.out),    int(b.conv_height()),      int(b.conv_width()),
          int(b.pool), int(b.groups), b.norm == ConvNorm::group, b.norm != ConvNorm::none,
          b.relu,      b.eps};
}

inline int64_t input_size(const ConvBlock& b) { return b.in * b.height * b.width; }
inline int64_t windows_of(const ConvBlock& b) { return b.out_height() * b.out_width(); }
inline int64_t numbers_of(const ConvBlock& b) { return b.conv_height() * b.conv_width(); }
// Whether the product that makes z goes by windows, and finds who has won there; the columns of an image then.
inline bool by_window(const ConvBlock& b) { return b.norm == ConvNorm::batch && b.pool > 1; }
inline int64_t columns_of(const ConvBlock& b) { return by_window(b) ? whole_windows(int(numbers_of(b))) : numbers_of(b); }
inline int64_t z_size(const ConvBlock& b) { return b.out * numbers_of(b); }
inline int64_t out_size(const ConvBlock& b) { return b.out * windows_of(b); }
inline int64_t tiles_of_sums(int64_t numbers) { return (numbers + kTileColumns - 1) / kTileColumns; }

// What block l takes; its tangent, of which images have none.
template <class R>
TaskTensor<const R> input(const ConvPass<R>& pass, const ConvArrays<R>& of, const ConvNet& net, int l) {
  return {l ? of.x[l] : pass.examples.x, pass.n * input_size(net.block[l])};
}

template <class R>
TaskTensor<const R> gradient_of(const ConvPass<R>& pass, const ConvArrays<R>& of, const ConvNet& net, int l) {
  return {of.dz[l], pass.n * z_size(net.block[l])};
}

// Enqueues it; kTurned: with the kernel turned around.
template <bool kTurned, class R>
void convolve(Queue& queue, const ConvNet& net, const ConvProduct<R>& p);

// Where the sums for the gradients to a block's bias, gamma and beta go, tensor 1, 2, 3; and how many parts of a task those are.
template <class R>
R* planes_of(const ConvPass<R>& pass, const ConvArrays<R>& of, const ConvNet& net, int l, int tensor) {
  return of.planes[l] + (tensor - 1) * net.tasks * pass.n * net.block[l].out;
}
inline int64_t planes_of_task(const ConvBlock& b, int tensor, int64_t n) { return tensor > 1 && b.norm == ConvNorm::batch && n ? 1 : n; }

// rdx = W' rdz + V' dz.
template <class R>
ConvProduct<R> tangent_to_images(const Convs<R>& convs, const ConvPass<R>& pass, const ConvParams<const R>& params,
                                 const ConvParams<const R>& direction, int l) {
  const ConvBlock& b = convs.net.block[l];
  ConvProduct<R> p{int(b.in), int(pass.n), 2, turned_of(b), {slices_of(params, 4 * l), slices_of(direction, 4 * l)}, {}, {}, {}, {}};
  p.x[0] = gradient_of(pass, convs.tangents, convs.net, l), p.x[1] = gradient_of(pass, pass.of, convs.net, l);
  return p;
}

}  // namespace fastmeta::cuda::layerwise
