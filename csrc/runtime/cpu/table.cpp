// The table of kernels of one instruction set.
#include "runtime/cpu/kernels.h"

namespace fastmeta::FASTMETA_ISA {

void widen(Storage, const uint16_t*, int64_t, float*);
void narrow(Storage, const float*, int64_t, uint16_t*);

#define DECLARE(NAME, ARGS) \
  template <class R>        \
  void NAME(const ARGS<R>&);
DECLARE(prototypes_fwd, Prototypes)
DECLARE(prototypes_bwd, Prototypes)
DECLARE(proto_log_softmax_fwd, ProtoLogSoftmax)
DECLARE(proto_log_softmax_bwd, ProtoLogSoftmax)
DECLARE(proto_loss, ProtoLoss)
DECLARE(proto_loss_loo_fwd, ProtoLossLoo)
DECLARE(proto_loss_loo_bwd, ProtoLossLoo)
DECLARE(task_scale, TaskScale)
DECLARE(matching_log_probs_fwd, MatchingLogProbs)
DECLARE(matching_log_probs_bwd, MatchingLogProbs)
DECLARE(sgd_step_fwd, SgdStep)
DECLARE(sgd_step_bwd, SgdStep)
DECLARE(momentum_step_fwd, OptimiserStep)
DECLARE(momentum_step_bwd, OptimiserStep)
DECLARE(adam_step_fwd, OptimiserStep)
DECLARE(adam_step_bwd, OptimiserStep)
DECLARE(conv_features_sizes, ConvFeatures)
DECLARE(conv_features_fwd, ConvFeatures)
DECLARE(conv_features_bwd, ConvFeatures)

#define DECLARE_OF_NETWORK(NAME, ARGS) \
  template <class R, class N>          \
  void network_##NAME(const ARGS<R, N>&);
DECLARE_OF_NETWORK(forward_fwd, ForwardCall)
DECLARE_OF_NETWORK(forward_bwd, ForwardCall)
DECLARE_OF_NETWORK(loss, LossCall)
DECLARE_OF_NETWORK(hvp, CurvatureCall)
DECLARE_OF_NETWORK(adapt_fwd, AdaptCall)
DECLARE_OF_NETWORK(adapt_bwd, AdaptCall)
DECLARE_OF_NETWORK(meta_loss, MetaLossCall)

template <class R, class N>
constexpr NetworkOnCpu<R, N> of_network() {
  return {network_forward_fwd<R, N>, network_forward_bwd<R, N>, network_loss<R, N>,     network_hvp<R, N>,
          network_adapt_fwd<R, N>,   network_adapt_bwd<R, N>,   network_meta_loss<R, N>};
}

template <class R>
constexpr CpuKernels<R> table() {
  return {
      widen,
      narrow,
      prototypes_fwd<R>,
      prototypes_bwd<R>,
      proto_log_softmax_fwd<R>,
      proto_log_softmax_bwd<R>,
      proto_loss<R>,
      proto_loss_loo_fwd<R>,
      proto_loss_loo_bwd<R>,
      task_scale<R>,
      matching_log_probs_fwd<R>,
      matching_log_probs_bwd<R>,
      sgd_step_fwd<R>,
      sgd_step_bwd<R>,
      momentum_step_fwd<R>,
      momentum_step_bwd<R>,
      adam_step_fwd<R>,
      adam_step_bwd<R>,
      conv_features_sizes<R>,
      conv_features_fwd<R>,
      conv_features_bwd<R>,
      of_network<R, MlpShape>(),
      of_network<R, ConvNet>(),
  };
}

const CpuKernels<float> float32 = table<float>();
const CpuKernels<double> float64 = table<double>();

}  // namespace fastmeta::FASTMETA_ISA
