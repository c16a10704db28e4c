// See conv_gradients.h.
#include "inner/cuda/conv_gradients.h"

#include "inner/cuda/conv_products.cuh"
#include "inner/cuda/conv_sums.cuh"

namespace fastmeta::cuda::layerwise {

template <class R>
bool ConvTargets<R>::asks_block(int l) const {
  return of[4 * l].asked() || of[4 * l + 1].asked() || of[4 * l + 2].asked() || of[4 * l + 3].asked();
}

template <class R>
int ConvTargets<R>::lowest(const ConvNet& net) const {
  int l = 0;
  while (l < net.blocks && !dx.asked() && !asks_block(l)) l++;
  return l;
}

namespace {

// The parts of the gradients to kernels: rdW = rdz x + dz rx.
template <class R, class Shape>
void weight_products(Queue& queue, const Convs<R>& convs, const ConvPass<R>& pass, const ConvTargets<R>& targets, bool tangent) {
  const ConvNet& net = convs.net;
  ConvWeightProducts<R> products{};
  const auto flush = [&] {
    auto* kernel = conv_weight_kernel<R, OrdinaryUnits<R, Shape>>;
    if constexpr (std::is_same_v<R, float>)
      if (net.tf32) kernel = conv_weight_kernel<R, TensorCores<Shape>>;
    queue.launch(kernel, net.tasks * products.tiles, Shape::kThreads, {}, products);
    products = {};
  };
  for (int l = 0; l < net.blocks; l++) {
    if (!targets.of[4 * l].asked()) continue;
    ConvWeightProduct<R> p{int(net.block[l].out), int(pass.n), tangent && l ? 2 : 1, patches_of(net.block[l]), {}, {}, convs.parts[l]};
    p.d[0] = gradient_of(pass, tangent ? convs.tangents : pass.of, net, l), p.d[1] = gradient_of(pass, pass.of, net, l);
    p.x[0] = input(pass, pass.of, net, l), p.x[1] = input(pass, convs.tangents, net, l);
    products.tiles += p.template tiles<Shape>();
    products.item[products.count++] = p;
    if (products.count == kWeightProducts) flush();
  }
  flush();
}

// The sums of one launch after another.
template <class R>
struct Summing {
  Queue& queue;
  int64_t tasks;
  SumsOfParts<R> sums{};

  void add(const SumOfParts<R>& item) {
    sums.item[sums.count++] = item;
    sums.blocks += sum_blocks(item.size);
    if (sums.count == kSummed) flush();
  }
  void flush() { queue.launch(gradient_kernel<R>, tasks * sums.blocks, kSumThreads, {}, sums), sums = {}; }
};

// dW = d' x, db = the sum of d of the linear layer; tangents: rdW = rd' x + d' rx.
template <class R>
void add_head(Summing<R>& summing, const Convs<R>& convs, const ConvPass<R>& pass, const ConvTargets<R>& targets, bool tangent) {
  const ConvNet& net = convs.net;
  const int tensor = 4 * net.blocks, features = int(out_size(net.block[net.blocks - 1])), outputs = int(net.outputs);
  const Parts<R> d{pass.dlogits, outputs}, rd{convs.rdlogits, outputs};
  const Parts<R> x{pass.of.x[net.blocks], features}, rx{convs.tangents.x[net.blocks], features};
  SumOfParts<R> weight{{x}, {tangent ? rd : d}, pass.n, outputs * features, targets.of[tensor], targets.then[tensor]};
  if (tangent) weight.parts[1] = rx, weight.factors[1] = d;
  if (weight.to.asked()) summing.add(weight);
  const SumOfParts<R> bias{{tangent ? rd : d}, {}, pass.n, outputs, targets.of[tensor + 1], targets.then[tensor + 1]};
  if (bias.to.asked()) summing.add(bias);
}

}  // namespace

template <class R>
void gradients(Queue& queue, const Convs<R>& convs, ConvPass<R>& pass, const ConvParams<const R>& params, const ConvTargets<R>& targets,
               const ConvParams<const R>* direction) {
  const ConvNet& net = convs.net;
  const ConvArrays<R>& of = direction ? convs.tangents : pass.of;
  if (targets.dx.asked()) {  // before the sums, which may change params and direction
    ConvProduct<R> p{int(net.block[0].in), int(pass.n), 1, turned_of(net.block[0]), {slices_of(params, 0)}, {}, {}, {}, {}};
    p.x[0] = gradient_of(pass, pass.of, net, 0);
    if (direction) p = tangent_to_images(convs, pass, params, *direction, 0);
    p.to = targets.dx;
    convolve<true>(queue, net, p);
  }
  bool narrow = false;
  for (int l = 0; l < net.blocks; l++) narrow = narrow || low(int(net.block[l].out));
  narrow ? weight_products<R, Low>(queue, convs, pass, targets, direction)
         : weight_products<R, Square>(queue, convs, pass, targets, direction);
  Summing<R> summing{queue, net.tasks};
  for (int tensor = 0; tensor < 4 * net.blocks; tensor++) {
    if (!targets.of[tensor].asked()) continue;
    const int l = tensor / 4, size = int(tensor_size(net, tensor));
    const ConvWeightProduct<R> p{int(net.block[l].out), int(pass.n), 1, patches_of(net.block[l]), {}, {}, nullptr};
    const R* parts = tensor % 4 ? planes_of(pass, of, net, l, tensor % 4) : convs.parts[l];
    const int64_t count = tensor % 4 ? planes_of_task(net.block[l], tensor % 4, pass.n) : p.splits();
    summing.add({{{parts, size}}, {}, count, size, targets.of[tensor], targets.then[tensor]});
  }
  add_head(summing, convs, pass, targets, direction);
  if (targets.loss.data) summing.add({{{convs.losses, 1}}, {}, loss_parts(pass.n), 1, {targets.loss}, {}});
  summing.flush();
}

template <class R>
void sum_rates(Queue& queue, const ConvNet& net, const ConvParams<const R>& g, const ConvParams<const R>& v, const ConvRateSums<R>& sums) {
  const ConvRates<R>& drates = sums.drates;
  RateArguments<R> c{0, drates.shared, sums.first, {}};
  const auto flush = [&] {
    queue.launch(rate_kernel<R>, c.count ? net.tasks * (c.shared ? 1 : c.count) : 0, kNormThreads, {}, c);
    if (c.shared) c.first = false;
    c.count = 0;
  };
  for (int tensor = 0; tensor < 4 * net.blocks + 2; tensor++) {
    R* drate = rates_of(drates, tensor, 1, sums.step, sums.steps, 0);
    if (!g.value[tensor] || !drate) continue;
    c.item[c.count++] = {slices_of(g, tensor), slices_of(v, tensor), {drate, drates.per_step ? sums.steps : 1}, tensor_size(net, tensor)};
    if (c.count == kSummed) flush();
  }
  flush();
}

#define INSTANTIATE(R)                                                                                              \
  template struct ConvTargets<R>;                                                                                   \
  template void gradients(Queue&, const Convs<R>&, ConvPass<R>&, const ConvParams<const R>&, const ConvTargets<R>&, \
                          const ConvParams<const R>*);                                                              \
  template void sum_rates(Queue&, const ConvNet&, const ConvParams<const R>&, const ConvParams<const R>&, const ConvRateSums<R>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::cuda::layerwise
