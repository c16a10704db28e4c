// See conv_layers.h: the launches of a pass.
#include "inner/cuda/conv_layers.h"

#include "inner/cuda/conv_head.cuh"
#include "inner/cuda/conv_norm_tangents.cuh"
#include "inner/cuda/conv_products.cuh"

namespace fastmeta::cuda::layerwise {
namespace {

constexpr int kImagesOfChunk = 16;  // of a batch norm, at least
constexpr int kMostChunks = 8;      // blocks of a set: each adds up all sums of its tiles

// Where a window of block l was won, of values or tangents.
template <class R>
R* won_of(const ConvArrays<R>& of, const ConvNet& net, int l) {
  return by_window(net.block[l]) ? of.won[l] : of.z[l];
}

// The arrays of block l that its norm's kernels take; columns: of a channel, of which a product has left sums; 0: none has.
template <class R>
NormArguments<R> norm_arguments(const Convs<R>& convs, const ConvPass<R>& pass, const ConvParams<const R>& params, int l, int64_t columns) {
  const ConvBlock& b = convs.net.block[l];
  NormArguments<R> c{};
  c.shape = norm_shape(b, pass.n);
  c.gamma = slices_of(params, 4 * l + 2), c.beta = slices_of(params, 4 * l + 3);
  c.z = pass.of.z[l], c.d = pass.of.d[l], c.statistics = pass.of.statistics[l];
  const bool summed = columns && b.norm == ConvNorm::batch;
  c.sums = summed ? convs.sums : nullptr;
  c.tiles = int(tiles_of_sums(columns)), c.across = int(columns_of(b));
  const int64_t chunks = pass.n / kImagesOfChunk;
  c.chunks = !summed && b.norm != ConvNorm::none ? 1 : chunks < 1 ? 1 : chunks > kMostChunks ? kMostChunks : int(chunks);
  return c;
}
template <class R>
void add_tangents(NormArguments<R>& c, const Convs<R>& convs, const ConvPass<R>& pass, const ConvParams<const R>& direction, int l) {
  c.vgamma = slices_of(direction, 4 * l + 2), c.vbeta = slices_of(direction, 4 * l + 3);
  c.rz = convs.tangents.z[l], c.rd = convs.tangents.d[l], c.rstatistics = convs.tangents.statistics[l];
  c.dgamma = planes_of(pass, pass.of, convs.net, l, 2), c.dbeta = planes_of(pass, pass.of, convs.net, l, 3);
}
template <class R>
void add_planes(NormArguments<R>& c, const ConvPass<R>& pass, const ConvArrays<R>& of, const ConvNet& net, int l) {
  c.of_bias = planes_of(pass, of, net, l, 1), c.of_gamma = planes_of(pass, of, net, l, 2), c.of_beta = planes_of(pass, of, net, l, 3);
}
template <class R>
void launch_norm(Queue& queue, const ConvNet& net, void (*kernel)(NormArguments<R>), const NormArguments<R>& c) {
  queue.launch(kernel, net.tasks * c.shape.sets() * c.chunks * (c.shape.images ? 1 : 0), kNormThreads, {}, c);
}

// What a product sums of its results, which are z of block l or the gradient to what it hands on, or tangents of these.
template <class R>
RowSumsArguments<R> sums_of(const Convs<R>& convs, const ConvPass<R>& pass, const ConvParams<const R>& params, int l, RowSums kind) {
  const ConvBlock& b = convs.net.block[l];
  RowSumsArguments<R> c{};
  if (b.norm != ConvNorm::batch) return c;
  c.sums = convs.sums, c.kind = kind, c.relu = b.relu;
  c.statistics = pass.of.statistics[l], c.rstatistics = convs.tangents.statistics[l];
  c.gamma = slices_of(params, 4 * l + 2), c.beta = slices_of(params, 4 * l + 3);
  c.won = kind == RowSums::values ? pass.of.won[l] : kind == RowSums::tangents ? convs.tangents.won[l] : nullptr;
  c.z = kind == RowSums::tangents ? pass.of.z[l] : won_of(pass.of, convs.net, l);
  c.rz = won_of(convs.tangents, convs.net, l), c.d = pass.of.d[l];
  return c;
}

template <class R>
ConvArrays<R> take_arrays(Arena& arena, const ConvNet& net, int64_t most, bool gradient) {
  ConvArrays<R> found{};
  const int64_t all = net.tasks * most;
  for (int l = 0; l < net.blocks; l++) {
    const ConvBlock& b = net.block[l];
    found.x[l + 1] = arena.take<R>(all * out_size(b));
    found.z[l] = arena.take<R>(all * z_size(b));
    found.statistics[l] = arena.take<R>(net.tasks * norm_shape(b, most).sets() * 2);
    found.won[l] = by_window(b) ? arena.take<R>(all * out_size(b)) : nullptr;
    if (!gradient) continue;
    found.dz[l] = arena.take<R>(all * z_size(b));
    found.d[l] = arena.take<R>(all * out_size(b));
    found.planes[l] = arena.take<R>(3 * all * b.out);
  }
  return found;
}

}  // namespace

template <bool kTurned, class R, class Shape>
void convolve_in(Queue& queue, const ConvNet& net, const ConvProduct<R>& p) {
  auto* kernel = conv_kernel<R, kTurned, OrdinaryUnits<R, Shape>>;
  if constexpr (std::is_same_v<R, float>)
    if (net.tf32) kernel = conv_kernel<R, kTurned, TensorCores<Shape>>;
  queue.launch(kernel, net.tasks * p.template tiles<Shape>(), Shape::kThreads, {}, p);
}

template <bool kTurned, class R>
void convolve(Queue& queue, const ConvNet& net, const ConvProduct<R>& p) {
  low(p.M) ? convolve_in<kTurned, R, Low>(queue, net, p) : convolve_in<kTurned, R, Square>(queue, net, p);
}

template <class R>
Convs<R> lay_out(Queue& queue, const ConvNet& net, int64_t most, bool gradient, int64_t tangents) {
  Convs<R> convs{net, {}, nullptr, nullptr, {}, nullptr, nullptr};
  Arena& arena = queue.arena();
  int64_t sums = 0;
  for (int l = 0; l < net.blocks; l++) {
    const ConvBlock& b = net.block[l];
    const int64_t of_block = b.norm == ConvNorm::batch ? net.tasks * b.out * kRowSums * tiles_of_sums(most * columns_of(b)) : 0;
    sums = sums > of_block ? sums : of_block;
    if (!gradient) continue;
    const ConvWeightProduct<R> p{int(b.out), int(most), 1, patches_of(b), {}, {}, nullptr};
    convs.parts[l] = arena.take<R>(net.tasks * p.splits() * p.M * p.N());
  }
  convs.sums = arena.take<R>(sums);
  convs.losses = arena.take<R>(net.tasks * loss_parts(most));
  if (tangents == kNoTangents) return convs;
  convs.tangents = take_arrays<R>(arena, net, tangents, true);
  convs.rlogits = arena.take<R>(net.tasks * tangents * net.outputs);
  convs.rdlogits = arena.take<R>(net.tasks * tangents * net.outputs);
  return convs;
}

template <class R>
int64_t place_pass(ConvPass<R>& pass, const ConvNet& net, int64_t most, bool gradient, void* memory) {
  Arena arena{nullptr, static_cast<unsigned char*>(memory), 0, 0, 0};
  pass = {};
  pass.of = take_arrays<R>(arena, net, most, gradient);
  pass.logits = arena.take<R>(net.tasks * most * net.outputs);
  pass.dlogits = gradient ? arena.take<R>(net.tasks * most * net.outputs) : nullptr;
  return arena.slow_used;
}

template <class R>
void forward(Queue& queue, const Convs<R>& convs, ConvPass<R>& pass, const ConvParams<const R>& params) {
  const ConvNet& net = convs.net;
  for (int l = 0; l < net.blocks; l++) {
    const ConvBlock& b = net.block[l];
    ConvProduct<R> p{int(b.out), int(pass.n), 1, patches_of(b), {slices_of(params, 4 * l)}, {input(pass, pass.of, net, l)}, {}, {}, {}};
    p.bias = slices_of(params, 4 * l + 1);
    p.to.out = {pass.of.z[l], pass.n * z_size(b)};
    p.sums = sums_of(convs, pass, params, l, RowSums::values);
    convolve<false>(queue, net, p);
    NormArguments<R> c = norm_arguments(convs, pass, params, l, pass.n * columns_of(b));
    c.out = pass.of.x[l + 1], c.won = pass.of.won[l];
    launch_norm(queue, net, norm_kernel<R>, c);
  }
}

template <class R>
void tangents_forward(Queue& queue, const Convs<R>& convs, ConvPass<R>& pass, const ConvParams<const R>& params,
                      const ConvParams<const R>& direction) {
  const ConvNet& net = convs.net;
  for (int l = 0; l < net.blocks; l++) {  // rz = V x + W rx
    const ConvBlock& b = net.block[l];
    ConvProduct<R> p{int(b.out), int(pass.n), l ? 2 : 1, patches_of(b), {slices_of(direction, 4 * l), slices_of(params, 4 * l)}, {},
                     {},         {},          {}};
    p.x[0] = input(pass, pass.of, net, l), p.x[1] = input(pass, convs.tangents, net, l);
    p.bias = slices_of(direction, 4 * l + 1);
    p.to.out = {convs.tangents.z[l], pass.n * z_size(b)};
    p.sums = sums_of(convs, pass, params, l, RowSums::tangents);
    convolve<false>(queue, net, p);
    NormArguments<R> c = norm_arguments(convs, pass, params, l, pass.n * columns_of(b));
    add_tangents(c, convs, pass, direction, l);
    c.out = convs.tangents.x[l + 1], c.won = pass.of.won[l], c.rwon = convs.tangents.won[l];
    launch_norm(queue, net, norm_tangent_kernel<R>, c);
  }
}

int64_t loss_parts(int64_t n) { return (n + kHeadRows - 1) / kHeadRows; }

template <class R>
void head(Queue& queue, const Convs<R>& convs, const ConvPass<R>& pass, const ConvParams<const R>& params, const HeadWork<R>& work,
          const ConvParams<const R>* direction) {
  const ConvNet& net = convs.net;
  const int last = net.blocks - 1, weight = 4 * net.blocks;
  HeadArguments<R> c{int(pass.n), int(out_size(net.block[last])), int(net.outputs), loss_parts(pass.n), work.outputs, work.loss};
  c.w = slices_of(params, weight), c.b = slices_of(params, weight + 1);
  if (direction) c.vw = slices_of(*direction, weight), c.vb = slices_of(*direction, weight + 1);
  c.x = pass.of.x[net.blocks], c.rx = convs.tangents.x[net.blocks];
  c.logits = pass.logits, c.dlogits = pass.dlogits, c.rlogits = convs.rlogits, c.rdlogits = convs.rdlogits;
  c.dx = work.back ? pass.of.d[last] : nullptr, c.rdx = work.back_tangent ? convs.tangents.d[last] : nullptr;
  c.losses = convs.losses, c.loss = net.loss, c.examples = pass.examples, c.what = work.what;
  queue.launch(direction ? head_kernel<R, true> : head_kernel<R, false>, net.tasks * c.blocks, kHeadThreads, {}, c);
}

template <class R>
void backward(Queue& queue, const Convs<R>& convs, ConvPass<R>& pass, const ConvParams<const R>& params, int lowest) {
  const ConvNet& net = convs.net;
  for (int l = net.blocks - 1; l >= lowest; l--) {
    const bool summed = l < net.blocks - 1;
    NormArguments<R> c = norm_arguments(convs, pass, params, l, summed ? pass.n * windows_of(net.block[l]) : 0);
    add_planes(c, pass, pass.of, net, l);
    c.out = pass.of.dz[l];
    launch_norm(queue, net, norm_back_kernel<R>, c);
    if (l == lowest) continue;
    ConvProduct<R> p{int(net.block[l].in), int(pass.n), 1, turned_of(net.block[l]), {slices_of(params, 4 * l)}, {}, {}, {}, {}};
    p.x[0] = gradient_of(pass, pass.of, net, l);
    p.to.out = {pass.of.d[l - 1], pass.n * input_size(net.block[l])};
    p.sums = sums_of(convs, pass, params, l - 1, RowSums::gradients);
    convolve<true>(queue, net, p);
  }
}

template <class R>
void tangents_backward(Queue& queue, const Convs<R>& convs, ConvPass<R>& pass, const ConvParams<const R>& params,
                       const ConvParams<const R>& direction, int lowest) {
  const ConvNet& net = convs.net;
  for (int l = net.blocks - 1; l >= lowest; l--) {
    const bool summed = l < net.blocks - 1;
    NormArguments<R> c = norm_arguments(convs, pass, params, l, summed ? pass.n * windows_of(net.block[l]) : 0);
    add_tangents(c, convs, pass, direction, l);
    add_planes(c, pass, convs.tangents, net, l);
    c.out = convs.tangents.dz[l];
    launch_norm(queue, net, norm_tangent_back_kernel<R>, c);
    if (l == lowest) continue;
    ConvProduct<R> p = tangent_to_images(convs, pass, params, direction, l);
    p.to.out = {convs.tangents.d[l - 1], pass.n * input_size(net.block[l])};
    p.sums = sums_of(convs, pass, params, l - 1, RowSums::gradient_tangents);
    convolve<true>(queue, net, p);
  }
}

#define INSTANTIATE(R)                                                                                                           \
  template void convolve<false>(Queue&, const ConvNet&, const ConvProduct<R>&);                                                  \
  template void convolve<true>(Queue&, const ConvNet&, const ConvProduct<R>&);                                                   \
  template Convs<R> lay_out(Queue&, const ConvNet&, int64_t, bool, int64_t);                                                     \
  template int64_t place_pass(ConvPass<R>&, const ConvNet&, int64_t, bool, void*);                                               \
  template void forward(Queue&, const Convs<R>&, ConvPass<R>&, const ConvParams<const R>&);                                      \
  template void tangents_forward(Queue&, const Convs<R>&, ConvPass<R>&, const ConvParams<const R>&, const ConvParams<const R>&); \
  template void head(Queue&, const Convs<R>&, const ConvPass<R>&, const ConvParams<const R>&, const HeadWork<R>&,                \
                     const ConvParams<const R>*);                                                                                \
  template void backward(Queue&, const Convs<R>&, ConvPass<R>&, const ConvParams<const R>&, int);                                \
  template void tangents_backward(Queue&, const Convs<R>&, ConvPass<R>&, const ConvParams<const R>&, const ConvParams<const R>&, int);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::cuda::layerwise
