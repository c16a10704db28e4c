// mlp_adapt and conv_adapt: one task on a thread; for an MLP 3 n P multiply-adds a step forward, 9 n P a step backward, which takes the
// steps again: the trajectories of all tasks would leave the cache, and to read them back costs as much.
#include "inner/cpu/conv_network.h"
#include "inner/cpu/inner_loop.h"
#include "inner/cpu/mlp_network.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R, class N>
using Loop = InnerLoop<R, N, AdaptCall<R, N>>;

}  // namespace

template <class R, class N>
void network_adapt_fwd(const AdaptCall<R, N>& c) {
  const LayoutOf<R, N> layout(c.shape, c.params, false);
  for_each_task<Loop<R, N>>(
      c.shape, c.support.count, [&](Loop<R, N>& loop, int64_t t) { store_block(layout, loop.adapt(t), c.adapted, t); }, c, layout,
      c.support.count, false);
}

template <class R, class N>
void network_adapt_bwd(const AdaptCall<R, N>& c) {
  const LayoutOf<R, N> layout(c.shape, c.params, c.support_grads.dx);
  for_each_task<Loop<R, N>>(
      c.shape, c.support.count,
      [&](Loop<R, N>& loop, int64_t t) {
        loop.adapt(t);
        load_block(layout, c.dadapted, t, loop.v);
        loop.differentiate(t);
      },
      c, layout, c.support.count, true);
}

#define INSTANTIATE(R, N)                                  \
  template void network_adapt_fwd(const AdaptCall<R, N>&); \
  template void network_adapt_bwd(const AdaptCall<R, N>&);
INSTANTIATE(float, MlpShape)
INSTANTIATE(double, MlpShape)
INSTANTIATE(float, ConvNet)
INSTANTIATE(double, ConvNet)

}  // namespace fastmeta::FASTMETA_ISA
