// conv_adapt: one task on a thread; backward takes the steps again.
#include "inner/cpu/conv_inner.h"
#include "runtime/cpu/kernels.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
using Loop = ConvInnerLoop<R, ConvAdapt<R>>;

}  // namespace

template <class R>
void conv_adapt_fwd(const ConvAdapt<R>& c) {
  const ConvLayout<R> layout(c.net, c.params, false);
  for_each_task<Loop<R>>(
      c.net, [&](Loop<R>& loop, int64_t t) { store_block(layout, loop.adapt(t), c.adapted, t); }, c, layout, c.support.count, false);
}

template <class R>
void conv_adapt_bwd(const ConvAdapt<R>& c) {
  const ConvLayout<R> layout(c.net, c.params, c.support_grads.dx);
  for_each_task<Loop<R>>(
      c.net,
      [&](Loop<R>& loop, int64_t t) {
        loop.adapt(t);
        load_block(layout, c.dadapted, t, loop.v);
        loop.differentiate(t);
      },
      c, layout, c.support.count, true);
}

template void conv_adapt_fwd(const ConvAdapt<float>&);
template void conv_adapt_fwd(const ConvAdapt<double>&);
template void conv_adapt_bwd(const ConvAdapt<float>&);
template void conv_adapt_bwd(const ConvAdapt<double>&);

}  // namespace fastmeta::FASTMETA_ISA
