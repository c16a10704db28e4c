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

// The parts of the gradients to kernels: rdW = rdz x + dz rx.
template <class R>
void weight_products(Queue& queue, const Convs<R>& convs, const ConvPass<R>& pass, const ConvTargets<R>& targets, bool tangent) {
  const ConvNet& net = convs.net;
  ConvWeightProducts<R> products{};
  const auto flush = [&] {
    auto* kernel = conv_weight_kernel<R, OrdinaryUnits<R>>;
    if constexpr (std::is_same_v<R, float>)
      if (net.tf32) kernel = conv_weight_kernel<R, TensorCores>;
    queue.launch(kernel, net.tasks * products.tiles, kTileThreads, {}, products);
    products = {};
  };
  for (int l = 0; l < net.blocks; l++) {
    if (!targets.of[4 * l].asked()) continue;
    ConvWeightProduct<R> p{int(net.block[l].out), int(pass.n), tangent && l ? 2 : 1, patches_of(net.block[l]), {}, {}, convs.parts[l]};
    p.d[0] = gradient_of(pass, tangent ? convs.tangents : pass.of, net, l), p.d[1] = gradient_of(pass, pass.of, net, l);
    p.x[0] = input(pass, pass.of, net, l), p.x[1] = input(pass, convs.tangents, net, l);
    products.tiles += p.tiles();
    products.item[products.count++] = p;
    if (products.count == kWeightProducts) flush();
  }
  flush();
}

template <class R>
void gradients(Queue& queue, const Convs<R>& convs, ConvPass<R>& pass, const ConvParams<const R>& params, const ConvTargets<R>& targets,
               const ConvParams<const R>* direction) {
  const ConvNet& net = convs.net;
  const ConvArrays<R>& of = direction ? convs.tangents : pass.of;
  weight_products(queue, convs, pass, targets, direction);
  SumsOfParts<R> sums{};
  const auto flush = [&] { queue.launch(gradient_kernel<R>, net.tasks * sums.blocks, kSumThreads, {}, sums), sums = {}; };
  for (int tensor = 0; tensor < 4 * net.blocks; tensor++) {
    if (!targets.of[tensor].asked()) continue;
    const int l = tensor / 4, size = int(tensor_size(net, tensor));
    const ConvWeightProduct<R> p{int(net.block[l].out), int(pass.n), 1, patches_of(net.block[l]), {}, {}, nullptr};
    const R* parts = tensor % 4 ? planes_of(pass, of, net, params, l, tensor % 4) : convs.parts[l];
    sums.item[sums.count++] = {parts, tensor % 4 ? pass.n : p.splits(), size, targets.of[tensor]};
    sums.blocks += sum_blocks(size);
    if (sums.count == kSummed) flush();
  }
  flush();
  Targets<R> of_head;
  for (int i = 0; i < 2; i++) of_head.of[i] = targets.of[4 * net.blocks + i];
  gradients(queue, pass.head, direction, of_head);
  if (!targets.dx.asked()) return;
  ConvProduct<R> p{int(net.block[0].in), int(pass.n), 1, turned_of(net.block[0]), {slices_of(params, 0)}, {}, {}, {}};
  p.x[0] = gradient_of(pass, pass.of, net, 0);
  if (direction) p = tangent_to_images(convs, pass, params, *direction, 0);
  p.to = targets.dx;
  convolve<true>(queue, net, p);
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
