// The CPU kernels. Every csrc/*/cpu/*.cpp is compiled once for each instruction set, in the namespace FASTMETA_ISA
// (baseline, avx2, avx512); cpu<R>() is the table of the set in use.
#pragma once
#include <string>
#include <vector>

#include "inner/conv.h"
#include "inner/mlp.h"
#include "inner/optimiser_step.h"
#include "distance/proto.h"
#include "runtime/task_scale.h"

namespace fastmeta {

template <class R, class N>
struct NetworkOnCpu {
  void (*forward_fwd)(const ForwardCall<R, N>&);
  void (*forward_bwd)(const ForwardCall<R, N>&);
  void (*loss)(const LossCall<R, N>&);  // the gradient too
  void (*hvp)(const CurvatureCall<R, N>&);
  void (*adapt_fwd)(const AdaptCall<R, N>&);
  void (*adapt_bwd)(const AdaptCall<R, N>&);
  void (*meta_loss)(const MetaLossCall<R, N>&);
};

template <class R>
struct CpuKernels {
  void (*widen)(Storage, const uint16_t*, int64_t, float*);
  void (*narrow)(Storage, const float*, int64_t, uint16_t*);
  void (*prototypes_fwd)(const Prototypes<R>&);
  void (*prototypes_bwd)(const Prototypes<R>&);
  void (*proto_log_softmax_fwd)(const ProtoLogSoftmax<R>&);
  void (*proto_log_softmax_bwd)(const ProtoLogSoftmax<R>&);
  void (*proto_loss)(const ProtoLoss<R>&);
  void (*proto_loss_loo_fwd)(const ProtoLossLoo<R>&);
  void (*proto_loss_loo_bwd)(const ProtoLossLoo<R>&);
  void (*task_scale)(const TaskScale<R>&);
  void (*matching_log_probs_fwd)(const MatchingLogProbs<R>&);
  void (*matching_log_probs_bwd)(const MatchingLogProbs<R>&);
  void (*sgd_step_fwd)(const SgdStep<R>&);
  void (*sgd_step_bwd)(const SgdStep<R>&);
  void (*momentum_step_fwd)(const OptimiserStep<R>&);
  void (*momentum_step_bwd)(const OptimiserStep<R>&);
  void (*adam_step_fwd)(const OptimiserStep<R>&);
  void (*adam_step_bwd)(const OptimiserStep<R>&);
  void (*conv_features_sizes)(const ConvFeatures<R>&);  // with dout: of backward
  void (*conv_features_fwd)(const ConvFeatures<R>&);
  void (*conv_features_bwd)(const ConvFeatures<R>&);
  NetworkOnCpu<R, MlpShape> mlp;
  NetworkOnCpu<R, ConvNet> conv;
  bool emulates_cuda = false;  // whether the networks' kernels are CUDA's, emulated
};

template <class R>
const CpuKernels<R>& cpu();

std::string isa();
std::vector<std::string> isas();  // those this processor can run, best last
void set_isa(const std::string& name);

#define FASTMETA_TABLES(NAMESPACE)         \
  namespace NAMESPACE {                    \
  extern const CpuKernels<float> float32;  \
  extern const CpuKernels<double> float64; \
  }
FASTMETA_TABLES(baseline)
FASTMETA_TABLES(avx2)
FASTMETA_TABLES(avx512)
#undef FASTMETA_TABLES

}  // namespace fastmeta
