// The CPU kernels. Every csrc/*/cpu/*.cpp is compiled once for each instruction set, in the namespace FASTMETA_ISA
// (baseline, avx2, avx512); cpu<R>() is the table of the set in use.
#pragma once
#include <string>
#include <vector>

#include "inner/conv.h"
#include "inner/mlp.h"
#include "distance/proto.h"
#include "runtime/task_scale.h"

namespace fastmeta {

template <class R>
struct CpuKernels {
  void (*prototypes_fwd)(const Prototypes<R>&);
  void (*prototypes_bwd)(const Prototypes<R>&);
  void (*proto_log_softmax_fwd)(const ProtoLogSoftmax<R>&);
  void (*proto_log_softmax_bwd)(const ProtoLogSoftmax<R>&);
  void (*proto_loss)(const ProtoLoss<R>&);
  void (*task_scale)(const TaskScale<R>&);
  void (*matching_log_probs_fwd)(const MatchingLogProbs<R>&);
  void (*matching_log_probs_bwd)(const MatchingLogProbs<R>&);
  void (*sgd_step_fwd)(const SgdStep<R>&);
  void (*sgd_step_bwd)(const SgdStep<R>&);
  void (*mlp_forward_fwd)(const MlpForward<R>&);
  void (*mlp_forward_bwd)(const MlpForward<R>&);
  void (*mlp_loss)(const MlpLoss<R>&);
  void (*mlp_hvp)(const MlpCurvature<R>&);
  void (*mlp_adapt_fwd)(const MlpAdapt<R>&);
  void (*mlp_adapt_bwd)(const MlpAdapt<R>&);
  void (*mlp_meta_loss)(const MlpMetaLoss<R>&);
  void (*conv_forward_fwd)(const ConvForward<R>&);
  void (*conv_forward_bwd)(const ConvForward<R>&);
  void (*conv_loss)(const ConvLoss<R>&);
  void (*conv_hvp)(const ConvCurvature<R>&);
  void (*conv_adapt_fwd)(const ConvAdapt<R>&);
  void (*conv_adapt_bwd)(const ConvAdapt<R>&);
  void (*conv_meta_loss)(const ConvMetaLoss<R>&);
  bool mlp_adapt_keeps = false;  // whether mlp_adapt_bwd takes the trajectory that forward wrote
  bool mlp_tf32 = false;         // whether the mlp kernels heed MlpShape::tf32
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
