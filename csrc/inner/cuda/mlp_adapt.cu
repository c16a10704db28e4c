// mlp_adapt: by task, a block goes through all inner steps, and back through the chain of Hessian-vector products; 3 n P
// multiply-adds a step forward, 8 n P a step backward, n P more for the gradients of rates. Kept for backward: [T, K, P].
#include "runtime/cuda/kernels.h"
#include "inner/cuda/mlp_inner.cuh"
#include "inner/cuda/mlp_inner_layers.h"
#include "inner/cuda/mlp_launch.cuh"

namespace fastmeta::cuda {
namespace {

template <class R>
__global__ void __launch_bounds__(kMaxThreads, 2) adapt_kernel(const __grid_constant__ MlpAdapt<R> c, const Need need, const Block block) {
  each_task<R>(c.shape, c.params, c.support.count, need, block, [&](Task<R>& s, int64_t t) {
    load_params(s, c.params, t);
    load_examples(s, c.support, t);
    __syncthreads();
    Inner<R> inner{s, c.rates, c.drates, c.support_grads, c.support_grads, c.steps, t, c.first_order};
    for (inner.step = 0; inner.step < c.steps; inner.step++) {
      if (c.trajectory) copy(c.trajectory + (t * c.steps + inner.step) * s.params, s.theta, s.params);
      run_stage<R, false>(inner);
    }
    scatter(s, s.theta, c.adapted, t);
  });
}

template <class R>
__global__ void __launch_bounds__(kMaxThreads, 2)
    adapt_bwd_kernel(const __grid_constant__ MlpAdapt<R> c, const Need need, const Block block) {
  const int64_t n = c.support.count;
  each_task<R>(c.shape, c.params, n, need, block, [&](Task<R>& s, int64_t t) {
    gather(s, s.cotangent, c.dadapted, t);
    load_examples(s, c.support, t, c.first_order ? nullptr : c.support_grads.dweights, true);
    Inner<R> inner{s, c.rates, c.drates, c.support_grads, c.support_grads, c.steps, t, c.first_order, Stage::chain};
    const bool runs = begin_chain(inner, n);
    __syncthreads();
    for (inner.step = c.steps - 1; runs && inner.step >= 0; inner.step--) {
      load_step(inner, c.trajectory + t * c.steps * s.params);
      __syncthreads();
      run_stage<R, true>(inner);
    }
    scatter(s, s.cotangent, c.dparams, t);
  });
}

template <class R>
void by_layer(const MlpAdapt<R>& c, const Need& need, Queue& queue) {
  layerwise::Net<R> net = layerwise::lay_out(queue, c.shape, c.params, c.support.count, need);
  net.examples = c.support;
  layerwise::Inner<R> inner{queue, net, c.rates, c.drates, c.support_grads, c.steps, c.first_order};
  const auto kept = [&](int64_t k) { return layerwise::at_step(net.task, c.trajectory, k, c.steps, 1); };
  if (!c.steps) return layerwise::scale(queue, net, c.adapted, c.params);
  if (c.trajectory) layerwise::scale(queue, net, kept(0), c.params);
  MlpParams<const R> theta = c.params;
  for (int64_t k = 0; k < c.steps; k++) {
    const MlpParams<R> next = c.trajectory && k + 1 < c.steps ? kept(k + 1) : c.adapted;
    inner.descend(k, theta, next);
    theta = layerwise::as_const(next);
  }
}

template <class R>
void bwd_by_layer(const MlpAdapt<R>& c, const Need& need, Queue& queue) {
  layerwise::Net<R> net = layerwise::lay_out(queue, c.shape, c.params, c.support.count, need);
  net.examples = c.support;
  layerwise::Inner<R> inner{queue, net, c.rates, c.drates, c.support_grads, c.steps, c.first_order};
  if (c.first_order || !c.steps) layerwise::scale(queue, net, c.dparams, c.dadapted);
  inner.run_back(c.dadapted, c.first_order ? MlpParams<R>{} : layerwise::complete(queue, net, c.dparams),
                 [&](int64_t k) { return k ? layerwise::as_const(layerwise::at_step(net.task, c.trajectory, k, c.steps, 1)) : c.params; });
}

template <bool kBackward, class R>
Way<MlpAdapt<R>> way(const MlpAdapt<R>& c) {
  Need need;
  need.loss = need.gradient = need.adapts = true;
  need.chain = kBackward;
  need.curvature = kBackward && !c.first_order;
  return {need, c.support.count, kBackward ? adapt_bwd_kernel<R> : adapt_kernel<R>, kBackward ? bwd_by_layer<R> : by_layer<R>};
}

}  // namespace

FASTMETA_DEFINE_LAUNCHER(mlp_adapt_fwd, MlpAdapt, way<false>)
FASTMETA_DEFINE_LAUNCHER(mlp_adapt_bwd, MlpAdapt, way<true>)

}  // namespace fastmeta::cuda
