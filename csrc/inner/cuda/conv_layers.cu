// See conv_layers.h: the launches of a pass.
#include "inner/cuda/conv_layers.h"

#include "inner/cuda/conv_norm_tangents.cuh"
#include "inner/cuda/conv_products.cuh"

namespace fastmeta::cuda::layerwise {
namespace {

// The arrays of block l that its norm's kernels take.
template <class R>
NormArguments<R> norm_arguments(const ConvPass<R>& pass, const ConvNet& net, const ConvParams<const R>& params, int l) {
  NormArguments<R> c{};
  c.shape = norm_shape(net.block[l], pass.n);
  c.gamma = slices_of(params, 4 * l + 2), c.beta = slices_of(params, 4 * l + 3);
  c.z = pass.of.z[l], c.d = pass.of.d[l], c.statistics = pass.of.statistics[l];
  return c;
}
template <class R>
void add_tangents(NormArguments<R>& c, const Convs<R>& convs, const ConvParams<const R>& direction, int l) {
  c.vgamma = slices_of(direction, 4 * l + 2), c.vbeta = slices_of(direction, 4 * l + 3);
  c.rz = convs.tangents.z[l], c.rd = convs.tangents.d[l], c.rstatistics = convs.tangents.statistics[l];
}
template <class R>
void add_planes(NormArguments<R>& c, const ConvPass<R>& pass, const ConvArrays<R>& of, const ConvNet& net,
                const ConvParams<const R>& params, int l) {
  c.of_bias = planes_of(pass, of, net, params, l, 1), c.of_gamma = planes_of(pass, of, net, params, l, 2);
  c.of_beta = planes_of(pass, of, net, params, l, 3);
}
template <class R>
void launch_norm(Queue& queue, const ConvNet& net, void (*kernel)(NormArguments<R>), const NormArguments<R>& c) {
  queue.launch(kernel, net.tasks * c.shape.sets() * (c.shape.images ? 1 : 0), kNormThreads, {}, c);
}

template <class P>
MlpParams<P> head_of(const ConvParams<P>& params, const ConvNet& net) {
  const int weight = 4 * net.blocks;
  MlpParams<P> found;
  found.weight[0] = params.value[weight], found.weight_stride[0] = params.stride[weight];
  found.bias[0] = params.value[weight + 1], found.bias_stride[0] = params.stride[weight + 1];
  return found;
}

template <class R>
void set_head(ConvPass<R>& pass, const ConvNet& net, const ConvParams<const R>& params) {
  pass.head.examples.x = pass.of.x[net.blocks];
  pass.head.params = head_of(params, net);
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
    if (!gradient) continue;
    found.dz[l] = arena.take<R>(all * z_size(b));
    found.d[l] = arena.take<R>(all * out_size(b));
    found.planes[l] = arena.take<R>(3 * all * b.out);
  }
  return found;
}

}  // namespace

template <bool kTurned, class R>
void convolve(Queue& queue, const ConvNet& net, const ConvProduct<R>& p) {
  auto* kernel = conv_kernel<R, kTurned, OrdinaryUnits<R>>;
  if constexpr (std::is_same_v<R, float>)
    if (net.tf32) kernel = conv_kernel<R, kTurned, TensorCores>;
  queue.launch(kernel, net.tasks * p.tiles(), kTileThreads, {}, p);
}

template <class R>
Convs<R> lay_out(Queue& queue, const ConvNet& net, int64_t most, bool gradient, int64_t tangents) {
  Convs<R> convs{net, {}, nullptr, nullptr, {}};
  Arena& arena = queue.arena();
  for (int l = 0; l < net.blocks && gradient; l++) {
    const ConvWeightProduct<R> p{int(net.block[l].out), int(most), 1, patches_of(net.block[l]), {}, {}, nullptr};
    convs.parts[l] = arena.take<R>(net.tasks * p.splits() * p.M * p.N());
  }
  if (tangents == kNoTangents) return convs;
  convs.tangents = take_arrays<R>(arena, net, tangents, true);
  convs.rlogits = arena.take<R>(net.tasks * tangents * net.outputs);
  convs.rdlogits = arena.take<R>(net.tasks * tangents * net.outputs);
  return convs;
}

template <class R>
int64_t place_pass(ConvPass<R>& pass, const ConvNet& net, const ConvParams<const R>& params, int64_t most, bool gradient, void* memory) {
  Arena arena{nullptr, static_cast<unsigned char*>(memory), 0, 0, 0};
  pass = {};
  pass.of = take_arrays<R>(arena, net, most, gradient);
  Net<R>& head = pass.head;
  Layer<R>& y = head.task.layer[0];
  y.in = int(out_size(net.block[net.blocks - 1])), y.out = int(net.outputs), y.has_bias = params.value[4 * net.blocks + 1];
  y.a = arena.take<R>(net.tasks * most * net.outputs);
  y.d = gradient ? arena.take<R>(net.tasks * most * net.outputs) : nullptr;
  head.shape.tasks = net.tasks, head.shape.layers = head.task.layers = 1;
  head.shape.width[0] = y.in, head.shape.width[1] = y.out;
  head.shape.activation = head.task.activation = Activation::identity;
  head.shape.loss = head.task.loss = net.loss, head.shape.tf32 = net.tf32_linear;
  return arena.slow_used;
}

template <class R>
void forward(Queue& queue, const Convs<R>& convs, ConvPass<R>& pass, const ConvParams<const R>& params) {
  const ConvNet& net = convs.net;
  for (int l = 0; l < net.blocks; l++) {
    const ConvBlock& b = net.block[l];
    ConvProduct<R> p{int(b.out), int(pass.n), 1, patches_of(b), {slices_of(params, 4 * l)}, {input(pass, pass.of, net, l)}, {}, {}};
    p.bias = slices_of(params, 4 * l + 1);
    p.to.out = {pass.of.z[l], pass.n * z_size(b)};
    convolve<false>(queue, net, p);
    NormArguments<R> c = norm_arguments(pass, net, params, l);
    c.out = pass.of.x[l + 1];
    launch_norm(queue, net, norm_kernel<R>, c);
  }
  set_head(pass, net, params);
  layerwise::forward(queue, pass.head);
}

template <class R>
void tangents_forward(Queue& queue, const Convs<R>& convs, ConvPass<R>& pass, const ConvParams<const R>& params,
                      const ConvParams<const R>& direction) {
  const ConvNet& net = convs.net;
  for (int l = 0; l < net.blocks; l++) {  // rz = V x + W rx
    const ConvBlock& b = net.block[l];
    ConvProduct<R> p{int(b.out), int(pass.n), l ? 2 : 1, patches_of(b), {slices_of(direction, 4 * l), slices_of(params, 4 * l)},
                     {},         {},          {}};
    p.x[0] = input(pass, pass.of, net, l), p.x[1] = input(pass, convs.tangents, net, l);
    p.bias = slices_of(direction, 4 * l + 1);
    p.to.out = {convs.tangents.z[l], pass.n * z_size(b)};
    convolve<false>(queue, net, p);
    NormArguments<R> c = norm_arguments(pass, net, params, l);
    add_tangents(c, convs, direction, l);
    c.out = convs.tangents.x[l + 1];
    launch_norm(queue, net, norm_tangent_kernel<R>, c);
  }
  set_head(pass, net, params);
  pass.head.direction = head_of(direction, net), pass.head.input_tangent = convs.tangents.x[net.blocks];
  pass.head.task.layer[0].ra = convs.rlogits, pass.head.task.layer[0].rd = convs.rdlogits;
  layerwise::forward(queue, pass.head, true);
}

// From the gradient to the outputs, or its tangent, to that to what the linear layer takes.
template <class R>
void head_backward(Queue& queue, const ConvNet& net, ConvPass<R>& pass, bool tangent, R* d) {
  Targets<R> to;
  to.of[2].out = {d, pass.n * pass.head.shape.width[0]};
  gradients(queue, pass.head, tangent, to);
}

template <class R>
void backward(Queue& queue, const Convs<R>& convs, ConvPass<R>& pass, const ConvParams<const R>& params, int lowest) {
  const ConvNet& net = convs.net;
  if (lowest < net.blocks) head_backward(queue, net, pass, false, pass.of.d[net.blocks - 1]);
  for (int l = net.blocks - 1; l >= lowest; l--) {
    NormArguments<R> c = norm_arguments(pass, net, params, l);
    add_planes(c, pass, pass.of, net, params, l);
    c.out = pass.of.dz[l];
    launch_norm(queue, net, norm_back_kernel<R>, c);
    if (l == lowest) continue;
    ConvProduct<R> p{int(net.block[l].in), int(pass.n), 1, turned_of(net.block[l]), {slices_of(params, 4 * l)}, {}, {}, {}};
    p.x[0] = gradient_of(pass, pass.of, net, l);
    p.to.out = {pass.of.d[l - 1], pass.n * input_size(net.block[l])};
    convolve<true>(queue, net, p);
  }
}

template <class R>
void tangents_backward(Queue& queue, const Convs<R>& convs, ConvPass<R>& pass, const ConvParams<const R>& params,
                       const ConvParams<const R>& direction, int lowest) {
  const ConvNet& net = convs.net;
  if (lowest < net.blocks) head_backward(queue, net, pass, true, convs.tangents.d[net.blocks - 1]);
  for (int l = net.blocks - 1; l >= lowest; l--) {
    NormArguments<R> c = norm_arguments(pass, net, params, l);
    add_tangents(c, convs, direction, l);
    add_planes(c, pass, convs.tangents, net, params, l);
    c.dz = pass.of.dz[l], c.out = convs.tangents.dz[l];
    launch_norm(queue, net, norm_tangent_back_kernel<R>, c);
    if (l == lowest) continue;
    ConvProduct<R> p = tangent_to_images(convs, pass, params, direction, l);
    p.to.out = {convs.tangents.d[l - 1], pass.n * input_size(net.block[l])};
    convolve<true>(queue, net, p);
  }
}

#define INSTANTIATE(R)                                                                                                           \
  template void convolve<false>(Queue&, const ConvNet&, const ConvProduct<R>&);                                                  \
  template void convolve<true>(Queue&, const ConvNet&, const ConvProduct<R>&);                                                   \
  template Convs<R> lay_out(Queue&, const ConvNet&, int64_t, bool, int64_t);                                                     \
  template int64_t place_pass(ConvPass<R>&, const ConvNet&, const ConvParams<const R>&, int64_t, bool, void*);                   \
  template void forward(Queue&, const Convs<R>&, ConvPass<R>&, const ConvParams<const R>&);                                      \
  template void tangents_forward(Queue&, const Convs<R>&, ConvPass<R>&, const ConvParams<const R>&, const ConvParams<const R>&); \
  template void backward(Queue&, const Convs<R>&, ConvPass<R>&, const ConvParams<const R>&, int);                                \
  template void tangents_backward(Queue&, const Convs<R>&, ConvPass<R>&, const ConvParams<const R>&, const ConvParams<const R>&, int);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::cuda::layerwise
