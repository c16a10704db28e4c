// The kernels of the mlp ops layer by layer: products in tiles (mlp_tiles.cuh), the loss, sums of the gradients of rates, and
// scaling. Whatever is not a product moves each of its numbers once.
#include "inner/cuda/mlp_layers.h"

#include <type_traits>

#include "inner/cuda/mlp_tiles.cuh"

namespace fastmeta::cuda {
namespace layerwise {
namespace {

constexpr int kScaledAtOnce = 1024;  // elements of a block

template <class R>
struct OutputArguments {
  Task<R> task;
  Examples<R> examples;
  Output<R> what;
};

// A block takes a task.
template <class R>
__global__ void __launch_bounds__(kMaxThreads, 2) output_kernel(const __grid_constant__ OutputArguments<R> c) {
  FASTMETA_SHARED(Task<R>, s);
  const int64_t t = blockIdx.x;
  const int n = int(c.examples.count), out = c.task.layer[c.task.layers - 1].out;
  if (threadIdx.x == 0) {
    Layer<R>& y = s.layer[0];
    y = c.task.layer[c.task.layers - 1];
    for (R** array : {&y.a, &y.ra, &y.d, &y.rd})
      if (*array) *array += t * n * out;
    s.layers = 1;
    s.n = n;
    s.loss = c.task.loss;
    s.y = targets_of(s, c.examples.y, n, t);
    set_weights(s, c.examples.weights, c.what.dweights, c.what.subtracts, n, t);
  }
  __syncthreads();
  const R loss = output_gradient(s, c.what.tangent, c.what.dloss ? c.what.dloss[t] : R(0));
  if (c.what.loss && threadIdx.x == 0) c.what.loss[t] = loss;
  if (!c.what.dy.asked()) return;
  const Sink<R> dy = c.what.dy.of(t);
  const R* d = c.what.tangent ? s.layer[0].rd : s.layer[0].d;
  R none = 0;
  for (int e = threadIdx.x; e < n * out; e += kMaxThreads) dy(e, -d[e], none);
}

// The tiles' sums of a task, for each parameter tensor or for all.
template <class R>
struct RateSums {
  const R* partial;  // [T, tiles, 2]
  int64_t tiles, of_layer[kMaxLayers];
  int layers;
  bool shared, first;
  TaskTensor<R> drate[2 * kMaxLayers];
};

template <class R>
__global__ void __launch_bounds__(kTileThreads) rate_sums_kernel(const __grid_constant__ RateSums<R> c) {
  FASTMETA_SHARED(Partials<R>, partials);
  const R* partial = c.partial + blockIdx.x * c.tiles * 2;
  R all = 0;
  for (int tensor = 0; tensor < 2 * c.layers; tensor++) {
    for (int64_t i = threadIdx.x; i < c.of_layer[tensor / 2]; i += kTileThreads) all += partial[2 * i + tensor % 2];
    if (tensor % 2) partial += 2 * c.of_layer[tensor / 2];
    if (c.shared && tensor + 1 < 2 * c.layers) continue;
    const R total = block_sum(partials.of_warp, all);
    R* drate = c.drate[c.shared ? 0 : tensor].of(blockIdx.x);
    if (drate && threadIdx.x == 0) *drate = c.first ? total : *drate + total;
    all = 0;
  }
}

template <class R>
struct ScaleArguments {
  Scalings<R> what;
  int64_t blocks;  // of a task
};

template <class R>
__global__ void __launch_bounds__(kTileThreads) scale_kernel(const __grid_constant__ ScaleArguments<R> c) {
  const int64_t task = blockIdx.x / c.blocks;
  int64_t block = blockIdx.x % c.blocks;
  int which = 0;
  const auto blocks = [&] { return (c.what.item[which].size + kScaledAtOnce - 1) / kScaledAtOnce; };
  for (; block >= blocks(); which++) block -= blocks();
  const Scaled<R>& s = c.what.item[which];
  R* out = s.out.of(task);
  const R *in = s.in.of(task), *factor = s.factor.of(task);
  for (int64_t e = block * kScaledAtOnce + threadIdx.x; e < (block + 1) * kScaledAtOnce && e < s.size; e += kTileThreads)
    out[e] = in ? (factor ? factor[s.per_element ? e : 0] : s.number) * in[e] : R(0);
}

template <Form kForm, class R, class Store>
void multiply(Queue& queue, const MlpShape& shape, Products<R, Store>& products) {
  products.tiles = 0;
  for (int i = 0; i < products.count; i++) products.tiles += products.item[i].tiles();
  auto* kernel = product_kernel<R, kForm, Store, OrdinaryUnits<R, Square>>;
  if constexpr (std::is_same_v<R, float>)
    if (shape.tf32) kernel = product_kernel<R, kForm, Store, TensorCores<Square>>;
  queue.launch(kernel, shape.tasks * products.tiles, kTileThreads, {}, products);
}

template <Form kForm, class R, class Store>
void multiply(Queue& queue, const MlpShape& shape, const Product<R, Store>& product) {
  Products<R, Store> products{1, 0, nullptr, {product}};
  multiply<kForm>(queue, shape, products);
}

// The inputs of a layer, or their tangent.
template <class R>
TaskTensor<const R> inputs(const Net<R>& net, int layer, bool tangent = false) {
  const int64_t n = net.examples.count;
  if (!layer) return {tangent ? net.input_tangent : net.examples.x, n * net.task.layer[0].in};
  const Layer<R>& below = net.task.layer[layer - 1];
  return {tangent ? below.ra : below.a, n * below.out};
}

// Whether what a layer takes has a tangent.
template <class R>
bool moves(const Net<R>& net, int layer) {
  return layer || net.input_tangent;
}

}  // namespace

template <class R>
Net<R> lay_out(Queue& queue, const MlpShape& shape, const MlpParams<const R>& params, int64_t most, Need need) {
  Net<R> net{shape, {}, params, {}, {}, nullptr};
  int64_t tiles = 0;
  for (int l = 0; l < shape.layers; l++) tiles += tiles_of(int(shape.width[l + 1]), int(shape.width[l]));
  if (need.chain) net.partial = queue.arena().take<R>(shape.tasks * tiles * 2);
  need.adapts = need.chain = false;
  need.kept = 0;
  cuda::lay_out(net.task, queue.arena(), shape, params, shape.tasks * most, need);
  return net;
}

template <class R>
void forward(Queue& queue, const Net<R>& net, bool tangent) {
  const int n = int(net.examples.count);
  for (int l = 0; l < net.task.layers; l++) {
    const Layer<R>& y = net.task.layer[l];
    const bool hidden = l + 1 < net.task.layers;
    multiply<Form::forward>(queue, net.shape,
                            Product<R, Activated<R>>{n,
                                                     y.out,
                                                     y.in,
                                                     1,
                                                     {inputs(net, l)},
                                                     {slices_of(net.params, 2 * l)},
                                                     {slices_of(net.params, 2 * l + 1), y.a, y.slope, tangent ? y.bend : nullptr,
                                                      hidden ? net.task.activation : Activation::identity},
                                                     {}});
    if (!tangent) continue;
    Product<R, ActivatedTangent<R>> p{n,
                                      y.out,
                                      y.in,
                                      moves(net, l) ? 2 : 1,
                                      {inputs(net, l)},
                                      {slices_of(net.direction, 2 * l)},
                                      {slices_of(net.direction, 2 * l + 1), y.slope, y.ra, y.bend, net.task.activation},
                                      {}};
    p.a[1] = inputs(net, l, true);
    p.b[1] = slices_of(net.params, 2 * l);
    multiply<Form::forward>(queue, net.shape, p);
  }
}

template <class R>
void backward(Queue& queue, const Net<R>& net, bool tangent) {
  const int n = int(net.examples.count);
  for (int l = net.task.layers - 1; l > 0; l--) {
    const Layer<R>&y = net.task.layer[l], &below = net.task.layer[l - 1];
    const TaskTensor<const R> d{y.d, int64_t(n) * y.out}, rd{y.rd, d.stride};
    multiply<Form::backward>(queue, net.shape,
                             Product<R, Gated<R>>{n,
                                                  y.in,
                                                  y.out,
                                                  1,
                                                  {d},
                                                  {slices_of(net.params, 2 * l)},
                                                  {below.slope, tangent ? below.bend : nullptr, below.d, below.rd, net.task.activation},
                                                  {}});
    if (tangent)
      multiply<Form::backward>(queue, net.shape,
                               Product<R, GatedTangent<R>>{n,
                                                           y.in,
                                                           y.out,
                                                           2,
                                                           {rd, d},
                                                           {slices_of(net.params, 2 * l), slices_of(net.direction, 2 * l)},
                                                           {below.slope, below.bend, below.rd, net.task.activation},
                                                           {}});
  }
}

template <class R>
void output(Queue& queue, const Net<R>& net, const Output<R>& what) {
  queue.launch(output_kernel<R>, net.shape.tasks, kMaxThreads, {}, OutputArguments<R>{net.task, net.examples, what});
}

template <class R>
void sum_rates(Queue& queue, const Net<R>& net, const Products<R, IntoSink<R>>& products, const Sums<R>& sums) {
  const MlpRates<R>& drates = sums.drates;
  RateSums<R> c{products.partial, products.tiles, {}, products.count, drates.shared, sums.first, {}};
  for (int l = 0; l < products.count; l++) c.of_layer[l] = products.item[l].tiles();
  for (int tensor = 0; tensor < (drates.shared ? 1 : 2 * products.count); tensor++)
    c.drate[tensor] = {rates_of(drates, tensor, 1, sums.step, sums.steps, 0), drates.per_step ? sums.steps : 1};
  queue.launch(rate_sums_kernel<R>, net.shape.tasks, kTileThreads, {}, c);
}

template <class R>
void gradients(Queue& queue, const Net<R>& net, bool tangent, const Targets<R>& targets, const Sums<R>& sums) {
  const int n = int(net.examples.count), inputs_tensor = 2 * net.task.layers;
  Products<R, IntoSink<R>> products{0, 0, nullptr, {}};
  bool summed = false;
  for (int tensor = 0; tensor < inputs_tensor; tensor++) summed = summed || targets.of[tensor].sums;
  for (int l = 0; l < net.task.layers; l++) {
    const Layer<R>& y = net.task.layer[l];
    const Sinks<R>&of_weight = targets.of[2 * l], &of_bias = targets.of[2 * l + 1];
    if (!of_weight.asked() && !of_bias.asked() && !summed) continue;
    const TaskTensor<const R> d{y.d, int64_t(n) * y.out}, rd{y.rd, d.stride};
    Product<R, IntoSink<R>> p{y.out,       y.in,   n, tangent && moves(net, l) ? 2 : 1, {tangent ? rd : d, d}, {inputs(net, l)},
                              {of_weight}, of_bias};
    p.b[1] = inputs(net, l, true);
    products.item[products.count++] = p;
  }
  if (summed) products.partial = net.partial;
  multiply<Form::weights>(queue, net.shape, products);
  if (summed) sum_rates(queue, net, products, sums);
  if (!targets.of[inputs_tensor].asked()) return;
  const Layer<R>& y = net.task.layer[0];
  const TaskTensor<const R> d{y.d, int64_t(n) * y.out}, rd{y.rd, d.stride};
  Product<R, IntoSink<R>> p{n, y.in, y.out, tangent ? 2 : 1, {tangent ? rd : d, d}, {slices_of(net.params, 0)}, {targets.of[inputs_tensor]},
                            {}};
  p.b[1] = slices_of(net.direction, 0);
  multiply<Form::backward>(queue, net.shape, p);
}

template <class R>
void scale(Queue& queue, int64_t tasks, const Scalings<R>& what) {
  int64_t blocks = 0;
  for (int i = 0; i < what.count; i++) blocks += (what.item[i].size + kScaledAtOnce - 1) / kScaledAtOnce;
  queue.launch(scale_kernel<R>, tasks * blocks, kTileThreads, {}, ScaleArguments<R>{what, blocks});
}

#define INSTANTIATE(R)                                                                        \
  template Net<R> lay_out(Queue&, const MlpShape&, const MlpParams<const R>&, int64_t, Need); \
  template void forward(Queue&, const Net<R>&, bool);                                         \
  template void backward(Queue&, const Net<R>&, bool);                                        \
  template void output(Queue&, const Net<R>&, const Output<R>&);                              \
  template void gradients(Queue&, const Net<R>&, bool, const Targets<R>&, const Sums<R>&);    \
  template void scale(Queue&, int64_t, const Scalings<R>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace layerwise
}  // namespace fastmeta::cuda
