// mlp_loss: n P multiply-adds, and nothing but the loss leaves the chip by task. With gradients, and as mlp_grad, 3 n P.
#include "runtime/cuda/kernels.h"
#include "inner/cuda/mlp_launch.cuh"
#include "inner/cuda/mlp_passes.cuh"

namespace fastmeta::cuda {
namespace {

template <class R, bool kGradients>
__global__ void __launch_bounds__(kMaxThreads, 2) loss_kernel(const __grid_constant__ MlpLoss<R> c, const Need need, const Block block) {
  const int64_t n = c.examples.count;
  each_task<R>(c.shape, c.params, n, need, block, [&](Task<R>& s, int64_t t) {
    load_params(s, c.params, t);
    load_examples(s, c.examples, t, c.grads.dweights);
    __syncthreads();
    forward<R, false>(s);
    const R loss = output_gradient(s);
    if (threadIdx.x == 0) c.loss[t] = loss;
    if constexpr (kGradients) {
      backward<R, false>(s);
      gradients<R, false>(s, false, Asked<R>{c.dparams, c.grads, t, 2 * s.layers});
    }
  });
}

template <class R>
void by_layer(const MlpLoss<R>& c, const Need& need, Queue& queue) {
  layerwise::Net<R> net = layerwise::lay_out(queue, c.shape, c.params, c.examples.count, need);
  net.examples = c.examples;
  layerwise::forward(queue, net);
  layerwise::output(queue, net, {c.loss, layerwise::of_targets(net, c.grads.dy), false, nullptr, c.grads.dweights});
  if (!need.gradient) return;
  layerwise::backward(queue, net);
  layerwise::gradients(queue, net, false, layerwise::asked(net, c.dparams, c.grads.dx));
}

template <class R>
Way<MlpLoss<R>> way(const MlpLoss<R>& c) {
  Need need;
  need.loss = true;
  need.gradient = c.dparams.any() || c.grads.dx || c.grads.dy;
  return {need, c.examples.count, need.gradient ? loss_kernel<R, true> : loss_kernel<R, false>, by_layer<R>};
}

}  // namespace

FASTMETA_DEFINE_LAUNCHER(mlp_loss, MlpLoss, way)

}  // namespace fastmeta::cuda
