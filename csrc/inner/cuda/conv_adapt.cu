// conv_adapt: the inner steps, and back through the chain of Hessian-vector products, each pass found again; see conv_inner.h. Kept for
// backward: [T, K, P].
#include "inner/cuda/conv_inner.h"
#include "inner/cuda/conv_launch.h"

namespace fastmeta::cuda {
namespace {

template <class R>
ConvParams<R> kept(const ConvAdapt<R>& c, int64_t k) {
  return layerwise::params_at(c.shape, c.params, c.trajectory, k, c.steps, 1);
}

template <class R>
void run(const ConvAdapt<R>& c, Queue& queue) {
  namespace by = layerwise;
  if (!c.steps) return by::scale(queue, c.shape, c.adapted, c.params);
  by::ConvInner<R, ConvAdapt<R>> inner(queue, c, c.support.count, false, false);
  if (c.trajectory) by::scale(queue, c.shape, kept(c, 0), c.params);
  ConvParams<const R> theta = c.params;
  for (int64_t k = 0; k < c.steps; k++) {
    const ConvParams<R> next = c.trajectory && k + 1 < c.steps ? kept(c, k + 1) : c.adapted;
    inner.descend(k, theta, next);
    theta = by::as_const(next);
  }
}

template <class R>
void run_back(const ConvAdapt<R>& c, Queue& queue) {
  namespace by = layerwise;
  by::ConvInner<R, ConvAdapt<R>> inner(queue, c, c.support.count, true, false);
  const bool chain = !c.first_order && c.steps;
  if (!chain) by::scale(queue, c.shape, c.dparams, c.dadapted);
  else by::scale(queue, c.shape, inner.direction, c.dadapted, &c.rates, c.steps - 1, c.steps);
  inner.run_back(c.dadapted, chain ? by::complete(queue, c.shape, c.params, c.dparams) : ConvParams<R>{},
                 [&](int64_t k) { return k ? by::as_const(kept(c, k)) : c.params; });
}

template <class R>
int64_t examples_of(const ConvAdapt<R>& c) {
  return c.support.count;
}

}  // namespace

FASTMETA_DEFINE_CONV(conv_adapt_fwd, ConvAdapt, run)
FASTMETA_DEFINE_CONV(conv_adapt_bwd, ConvAdapt, run_back)

}  // namespace fastmeta::cuda
