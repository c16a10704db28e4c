// mlp_hvp, and the backward of mlp_grad: 8 n P multiply-adds. The multiple dloss of the gradient costs nothing: added to the
// tangent of dL/dz in the last layer, it runs back through the same products. Gauss-Newton, 5 n P: that tangent runs back in the
// place of dL/dz, without tangents of its own.
#include "runtime/cuda/kernels.h"
#include "inner/cuda/mlp_launch.cuh"
#include "inner/cuda/mlp_passes.cuh"

namespace fastmeta::cuda {
namespace {

template <class R>
__global__ void __launch_bounds__(kMaxThreads, kWideBlocks)
    hvp_kernel(const __grid_constant__ MlpCurvature<R> c, const Need need, const Block block) {
  const int64_t n = c.examples.count;
  each_task<R>(c.shape, c.params, n, need, block, [&](Task<R>& s, int64_t t) {
    load_params(s, c.params, t);
    load_params(s, c.vectors, t, true);
    load_examples(s, c.examples, t, c.grads.dweights);
    __syncthreads();
    forward<R, true>(s, true);
    output_gradient(s, true, c.dloss ? c.dloss[t] : R(0));
    if (c.gauss_newton) {
      copy(s.last().d, s.last().rd, int64_t(s.n) * s.last().out);
      __syncthreads();
    }
    backward<R, true>(s, !c.gauss_newton);
    gradients<R, true>(s, !c.gauss_newton, Asked<R>{c.dparams, c.grads, t, 2 * s.layers});
  });
}

template <class R>
void by_layer(const MlpCurvature<R>& c, const Need& need, Queue& queue) {
  layerwise::Net<R> net = layerwise::lay_out(queue, c.shape, c.params, c.examples.count, need);
  net.direction = c.vectors;
  net.examples = c.examples;
  layerwise::forward(queue, net, true);
  layerwise::output(queue, net, {nullptr, layerwise::of_targets(net, c.grads.dy), true, c.dloss, c.grads.dweights});
  if (c.gauss_newton) net.task.last().d = net.task.last().rd;
  layerwise::backward(queue, net, !c.gauss_newton);
  layerwise::gradients(queue, net, !c.gauss_newton, layerwise::asked(net, c.dparams, c.grads.dx));
}

template <class R>
Way<MlpCurvature<R>> way(const MlpCurvature<R>& c) {
  Need need;
  need.loss = need.gradient = need.curvature = true;
  return {need, c.examples.count, hvp_kernel<R>, by_layer<R>};
}

}  // namespace

FASTMETA_DEFINE_LAUNCHER(mlp_hvp, MlpCurvature, way)

}  // namespace fastmeta::cuda
