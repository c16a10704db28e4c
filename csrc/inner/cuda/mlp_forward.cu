// mlp_forward: n P multiply-adds forward, 3 n P with the gradients. Forward writes the outputs straight to the caller's memory;
// by task, hidden activations stay on chip.
#include "runtime/cuda/kernels.h"
#include "inner/cuda/mlp_launch.cuh"
#include "inner/cuda/mlp_passes.cuh"

namespace fastmeta::cuda {
namespace {

template <class R, bool kGradients>
__global__ void __launch_bounds__(kMaxThreads, 2)
    forward_kernel(const __grid_constant__ MlpForward<R> c, const Need need, const Block block) {
  each_task<R>(c.shape, c.params, c.count, need, block, [&](Task<R>& s, int64_t t) {
    const int64_t first = t * c.count * s.last().out;
    load_params(s, c.params, t);
    load_examples(s, {c.count, c.x}, t);
    if (kGradients) copy(s.last().d, c.dout + first, c.count * s.last().out);
    else if (threadIdx.x == 0) s.last().a = c.out + first;
    __syncthreads();
    forward<R, false>(s);
    if constexpr (kGradients) {
      backward<R, false>(s);
      gradients<R, false>(s, false, Asked<R>{c.dparams, {c.dx, nullptr}, t, 2 * s.layers});
    }
  });
}

template <class R, bool kGradients>
void by_layer(const MlpForward<R>& c, const Need& need, Queue& queue) {
  layerwise::Net<R> net = layerwise::lay_out(queue, c.shape, c.params, c.count, need);
  net.examples = {c.count, c.x, nullptr};
  if (!kGradients) net.task.last().a = c.out;
  layerwise::forward(queue, net);
  if (!kGradients) return;
  net.task.last().d = const_cast<R*>(c.dout);  // only read
  layerwise::backward(queue, net);
  layerwise::gradients(queue, net, false, layerwise::asked(net, c.dparams, c.dx));
}

template <bool kGradients, class R>
Way<MlpForward<R>> way(const MlpForward<R>& c) {
  Need need;
  need.loss = need.gradient = kGradients;
  return {need, c.count, forward_kernel<R, kGradients>, by_layer<R, kGradients>};
}

}  // namespace

FASTMETA_DEFINE_LAUNCHER(mlp_forward_fwd, MlpForward, way<false>)
FASTMETA_DEFINE_LAUNCHER(mlp_forward_bwd, MlpForward, way<true>)

}  // namespace fastmeta::cuda
