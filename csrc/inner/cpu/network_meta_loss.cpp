// mlp_meta_loss and conv_meta_loss: one task on a thread, from the inner steps through the query loss to its whole meta-gradient. For an
// MLP 3 n P multiply-adds a step, 6 n P a step back.
#include <type_traits>

#include "inner/cpu/conv_network.h"
#include "inner/cpu/mlp_gram.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R, class N>
struct Work {
  Work(const MetaLossCall<R, N>& c, const LayoutOf<R, N>& layout, Scratch& scratch)
      : loop(c, layout, most(c.support.count, c.query.count), c.with_grads, scratch),
        query(loop.network, c.query.count, true, false, scratch) {}

  InnerLoop<R, N, MetaLossCall<R, N>> loop;
  PassOf<R, N> query;
};

// Numbers of a batch.
int64_t statistics_of(const ConvNet& net) { return 2 * net.normed(); }
int64_t statistics_of(const MlpShape&) { return 0; }

}  // namespace

template <class R, class N>
void network_meta_loss(const MetaLossCall<R, N>& c) {
  const LayoutOf<R, N> layout(c.shape, c.params, c.support_grads.dx || c.query_grads.dx);
  if constexpr (std::is_same_v<N, MlpShape>)
    if (gram_pays(c, layout)) return mlp_meta_loss_by_gram(c, layout);
  const int64_t n = c.query.count;
  for_each_task<Work<R, N>>(
      c.shape, most(c.support.count, n),
      [&](Work<R, N>& w, int64_t t) {
        const Network<R, N>& network = w.loop.network;
        const int64_t of_batch = statistics_of(c.shape);
        R* statistics = c.statistics ? c.statistics + t * (c.steps + 1) * of_batch : nullptr;
        w.loop.statistics = statistics, w.loop.of_batch = of_batch;
        const R* adapted = w.loop.adapt(t);
        w.query.load(network, c.query.x + t * n * c.shape.example_size(), n);
        network.forward(adapted, w.query);
        network.store_statistics(adapted, w.query, statistics ? statistics + c.steps * of_batch : nullptr);
        const ExampleGrads<R> grads = cleared(c.shape, c.query_grads, t * n, n);
        c.loss[t] = network.loss(targets_of(c.shape, c.query, t), w.query, grads.dweights);
        store_outputs(c, t, w.query.outputs(), layout.padded_outputs());
        if (!c.with_grads) return;
        if (grads.dy) subtract_rows(w.query.doutputs(), n, c.shape.output_size(), layout.padded_outputs(), grads.dy);
        network.backward(adapted, w.query, w.loop.v, grads.dx);
        w.loop.differentiate(t);
      },
      c, layout);
}

#define INSTANTIATE(R, N) template void network_meta_loss(const MetaLossCall<R, N>&);
INSTANTIATE(float, MlpShape)
INSTANTIATE(double, MlpShape)
INSTANTIATE(float, ConvNet)
INSTANTIATE(double, ConvNet)

}  // namespace fastmeta::FASTMETA_ISA
