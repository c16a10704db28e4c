// mlp_adapt: one task on a thread; 3 n P multiply-adds a step forward, 9 n P a step backward, which takes the steps again: the
// trajectories of all tasks would leave the cache, and to read them back costs as much.
#include "runtime/cpu/kernels.h"
#include "inner/cpu/mlp_inner.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
using Loop = InnerLoop<R, MlpAdapt<R>>;

}  // namespace

template <class R>
void mlp_adapt_fwd(const MlpAdapt<R>& c) {
  const Layout<R> layout(c.shape, c.params, false);
  for_each_task<Loop<R>>(
      c.shape, c.support.count, [&](Loop<R>& loop, int64_t t) { store_block(layout, loop.adapt(t), c.adapted, t); }, c, layout,
      c.support.count, false);
}

template <class R>
void mlp_adapt_bwd(const MlpAdapt<R>& c) {
  const Layout<R> layout(c.shape, c.params, c.support_grads.dx);
  for_each_task<Loop<R>>(
      c.shape, c.support.count,
      [&](Loop<R>& loop, int64_t t) {
        loop.adapt(t);
        load_block(layout, c.dadapted, t, loop.v);
        loop.differentiate(t);
      },
      c, layout, c.support.count, true);
}

template void mlp_adapt_fwd(const MlpAdapt<float>&);
template void mlp_adapt_fwd(const MlpAdapt<double>&);
template void mlp_adapt_bwd(const MlpAdapt<float>&);
template void mlp_adapt_bwd(const MlpAdapt<double>&);

}  // namespace fastmeta::FASTMETA_ISA
