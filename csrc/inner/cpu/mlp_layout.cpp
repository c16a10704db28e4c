// See mlp_layout.h.
#include "inner/cpu/mlp_layout.h"

#include "runtime/cpu/transpose.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
MlpLayout<R>::MlpLayout(const MlpShape& shape_, const MlpParams<const R>& params, bool input_gradients_)
    : shape(shape_), layers(shape_.layers), shared(true), input_gradients(input_gradients_) {
  for (int l = 0; l <= layers; l++) ld[l] = padded<R>(shape.width[l]);
  const auto take = [](int64_t& end, int64_t count) {
    end += count;
    return end - count;
  };
  for (int l = 0; l < layers; l++) {
    Layer& a = layer[l];
    a.in = shape.width[l], a.out = shape.width[l + 1];
    a.dots = a.out * (a.in / kLanes<R> + 2) <= a.in;
    a.by_rows = l || a.dots || input_gradients;
    a.rows = a.columns = a.bias = -1;
    (a.by_rows ? a.rows : a.columns) = take(gradient, a.by_rows ? a.out * ld[l] : a.in * ld[l + 1]);
    if (params.bias[l]) a.bias = take(gradient, ld[l + 1]);
    if (params.weight_stride[l] || params.bias_stride[l]) shared = false;
  }
  if (shape.residual_norm) {
    gamma = take(gradient, ld[layers]);
    if (params.bias[layers]) beta = take(gradient, ld[layers]);
    if (params.weight_stride[layers] || params.bias_stride[layers]) shared = false;
  }
  size = gradient;
  for (int l = 0; l < layers; l++)
    if (layer[l].by_rows && !layer[l].dots) layer[l].columns = take(size, layer[l].in * ld[l + 1]);
}

template <class R>
void load_rows(const R* from, int64_t rows, int64_t width, R* to, int64_t ld) {
  if (!rows || !width) return;  // the pointers may be null
  if (width == ld) return void(std::memcpy(to, from, size_t(rows * ld) * sizeof(R)));
  for (int64_t i = 0; i < rows; i++) {
    std::memcpy(to + i * ld, from + i * width, size_t(width) * sizeof(R));
    std::memset(to + i * ld + width, 0, size_t(ld - width) * sizeof(R));
  }
}

template <class R>
void store_rows(const R* from, int64_t rows, int64_t width, R* to, int64_t ld) {
  if (!rows || !width) return;
  if (width == ld) return void(std::memcpy(to, from, size_t(rows * ld) * sizeof(R)));
  for (int64_t i = 0; i < rows; i++) std::memcpy(to + i * width, from + i * ld, size_t(width) * sizeof(R));
}

template <class R>
void flip(const MlpLayout<R>& layout, R* block) {
  for (int l = 0; l < layout.layers; l++) {
    const Layer& a = layout.layer[l];
    if (a.rows >= 0 && a.columns >= 0) transpose(a.out, a.in, block + a.rows, layout.ld[l], block + a.columns, layout.ld[l + 1]);
  }
}

template <class R>
void load_block(const MlpLayout<R>& layout, const MlpParams<const R>& from, int64_t task, R* block) {
  for (int l = 0; l < layout.layers; l++) {
    const Layer& a = layout.layer[l];
    const R* weight = from.weight[l] + task * from.weight_stride[l];
    if (from.turned[l] && a.by_rows) transpose(a.in, a.out, weight, a.out, block + a.rows, layout.ld[l]);
    else if (from.turned[l]) load_rows(weight, a.in, a.out, block + a.columns, layout.ld[l + 1]);
    else if (a.by_rows) load_rows(weight, a.out, a.in, block + a.rows, layout.ld[l]);
    else transpose(a.out, a.in, weight, a.in, block + a.columns, layout.ld[l + 1]);
    if (a.bias >= 0) load_rows(from.bias[l] + task * from.bias_stride[l], 1, a.out, block + a.bias, layout.ld[l + 1]);
  }
  const int L = layout.layers;
  const int64_t out = layout.shape.output_size(), ld = layout.ld[L];
  if (layout.gamma >= 0) load_rows(from.weight[L] + task * from.weight_stride[L], 1, out, block + layout.gamma, ld);
  if (layout.beta >= 0) load_rows(from.bias[L] + task * from.bias_stride[L], 1, out, block + layout.beta, ld);
  flip(layout, block);
}

template <class R>
void store_block(const MlpLayout<R>& layout, const R* block, const MlpParams<R>& to, int64_t task) {
  for (int l = 0; l < layout.layers; l++) {
    const Layer& a = layout.layer[l];
    R* weight = to.weight[l] ? to.weight[l] + task * to.weight_stride[l] : nullptr;
    if (weight && a.by_rows) store_rows(block + a.rows, a.out, a.in, weight, layout.ld[l]);
    if (weight && !a.by_rows) transpose(a.in, a.out, block + a.columns, layout.ld[l + 1], weight, a.in);
    if (to.bias[l]) store_rows(block + a.bias, 1, a.out, to.bias[l] + task * to.bias_stride[l], layout.ld[l + 1]);
  }
  const int L = layout.layers;
  const int64_t out = layout.shape.output_size(), ld = layout.ld[L];
  if (layout.gamma >= 0 && to.weight[L]) store_rows(block + layout.gamma, 1, out, to.weight[L] + task * to.weight_stride[L], ld);
  if (layout.beta >= 0 && to.bias[L]) store_rows(block + layout.beta, 1, out, to.bias[L] + task * to.bias_stride[L], ld);
}

#define INSTANTIATE(R)                                                                       \
  template struct MlpLayout<R>;                                                              \
  template void load_block<R>(const MlpLayout<R>&, const MlpParams<const R>&, int64_t, R*);  \
  template void store_block<R>(const MlpLayout<R>&, const R*, const MlpParams<R>&, int64_t); \
  template void flip<R>(const MlpLayout<R>&, R*);                                            \
  template void load_rows<R>(const R*, int64_t, int64_t, R*, int64_t);                       \
  template void store_rows<R>(const R*, int64_t, int64_t, R*, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
