// The table of kernels of one instruction set.
#include "runtime/cpu/kernels.h"

namespace fastmeta::FASTMETA_ISA {

#define DECLARE(NAME, ARGS) \
  template <class R>        \
  void NAME(const ARGS<R>&);
DECLARE(prototypes_fwd, Prototypes)
DECLARE(prototypes_bwd, Prototypes)
DECLARE(proto_log_softmax_fwd, ProtoLogSoftmax)
DECLARE(proto_log_softmax_bwd, ProtoLogSoftmax)
DECLARE(proto_loss, ProtoLoss)
DECLARE(task_scale, TaskScale)
DECLARE(matching_log_probs_fwd, MatchingLogProbs)
DECLARE(matching_log_probs_bwd, MatchingLogProbs)
DECLARE(sgd_step_fwd, SgdStep)
DECLARE(sgd_step_bwd, SgdStep)
DECLARE(mlp_forward_fwd, MlpForward)
DECLARE(mlp_forward_bwd, MlpForward)
DECLARE(mlp_loss, MlpLoss)
DECLARE(mlp_hvp, MlpCurvature)
DECLARE(mlp_adapt_fwd, MlpAdapt)
DECLARE(mlp_adapt_bwd, MlpAdapt)
DECLARE(mlp_meta_loss, MlpMetaLoss)
DECLARE(conv_forward_fwd, ConvForward)
DECLARE(conv_forward_bwd, ConvForward)
DECLARE(conv_loss, ConvLoss)
DECLARE(conv_hvp, ConvCurvature)
DECLARE(conv_adapt_fwd, ConvAdapt)
DECLARE(conv_adapt_bwd, ConvAdapt)
DECLARE(conv_meta_loss, ConvMetaLoss)

template <class R>
constexpr CpuKernels<R> table() {
  return {
      prototypes_fwd<R>, prototypes_bwd<R>,   proto_log_softmax_fwd<R>,  proto_log_softmax_bwd<R>,
      proto_loss<R>,     task_scale<R>,       matching_log_probs_fwd<R>, matching_log_probs_bwd<R>,
      sgd_step_fwd<R>,   sgd_step_bwd<R>,     mlp_forward_fwd<R>,        mlp_forward_bwd<R>,
      mlp_loss<R>,       mlp_hvp<R>,          mlp_adapt_fwd<R>,          mlp_adapt_bwd<R>,
      mlp_meta_loss<R>,  conv_forward_fwd<R>, conv_forward_bwd<R>,       conv_loss<R>,
      conv_hvp<R>,       conv_adapt_fwd<R>,   conv_adapt_bwd<R>,         conv_meta_loss<R>,
  };
}

const CpuKernels<float> float32 = table<float>();
const CpuKernels<double> float64 = table<double>();

}  // namespace fastmeta::FASTMETA_ISA
