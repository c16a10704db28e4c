// The table of contents of fastmeta._C.
#include <pybind11/stl.h>

#include "build.h"  // of setup.py
#include "runtime/cpu/kernels.h"
#include "inner/mlp.h"
#include "ops.h"
#include "runtime/parallel.h"
#include "runtime/pybind.h"
#include "runtime/tensor.h"
#ifdef FASTMETA_CUDA
#include "runtime/cuda/kernels.h"
#endif

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
#ifdef FASTMETA_CUDA
  info["cuda"] = FASTMETA_BUILD_CUDA;  // the architectures
#else
  info["cuda"] = pybind11::none();
  info["no_cuda"] = FASTMETA_BUILD_NO_CUDA;  // why
#endif
#ifdef __clang__
  info["compiler"] = __VERSION__;
#else
  info["compiler"] = "g++ " __VERSION__;
#endif
#ifdef FASTMETA_X86
  info["isas"] = "baseline, avx2, avx512";
#else
  info["isas"] = "baseline";
#endif
  info["origin"] = FASTMETA_BUILD_ORIGIN;
  return info;
}

pybind11::list cuda_ops() {
  pybind11::list ops;
#ifdef FASTMETA_CUDA
  for (const char* op : fastmeta::cuda::ops) ops.append(op);
#endif
  return ops;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using namespace fastmeta;
  m.doc() = "fastmeta's native kernels; see csrc/ops.h for the conventions";
  pybind11::register_local_exception_translator(&translate);

  m.attr("max_layers") = kMaxLayers;
  m.attr("max_convs") = kMaxConvs;
  m.attr("most_padding") = kMostPadding;
  m.attr("most_pool") = kMostPool;
  m.def("init_tensor", &init_tensor);
  m.def("init_values", &init_values);
  m.def("init_parallel", &init_parallel);
  m.def("num_threads", &num_threads);
  m.def("build_info", &build_info);
  m.def("cuda_ops", &cuda_ops);
  m.def("isa", &isa);
  m.def("isas", &isas);
  m.def("set_isa", &set_isa);
  m.def("label_out_of_range", &label_out_of_range);
  m.def("empty_class", &empty_class);

  m.def("prototypes_fwd", &prototypes_fwd);
  m.def("prototypes_bwd", &prototypes_bwd);
  m.def("proto_log_softmax_fwd", &proto_log_softmax_fwd);
  m.def("proto_log_softmax_bwd", &proto_log_softmax_bwd);
  m.def("proto_loss_fwd", &proto_loss_fwd);
  m.def("proto_loss_bwd", &proto_loss_bwd);
  m.def("matching_log_probs_fwd", &matching_log_probs_fwd);
  m.def("matching_log_probs_bwd", &matching_log_probs_bwd);
  m.def("sgd_step_fwd", &sgd_step_fwd);
  m.def("sgd_step_bwd", &sgd_step_bwd);
  m.def("mlp_forward_fwd", &mlp_forward_fwd);
  m.def("mlp_forward_bwd", &mlp_forward_bwd);
  m.def("mlp_loss_fwd", &mlp_loss_fwd);
  m.def("mlp_loss_bwd", &mlp_loss_bwd);
  m.def("mlp_grad_fwd", &mlp_grad_fwd);
  m.def("mlp_grad_bwd", &mlp_grad_bwd);
  m.def("mlp_hvp_fwd", &mlp_hvp_fwd);
  m.def("mlp_adapt_fwd", &mlp_adapt_fwd);
  m.def("mlp_adapt_bwd", &mlp_adapt_bwd);
  m.def("mlp_meta_loss_fwd", &mlp_meta_loss_fwd);
  m.def("mlp_meta_loss_bwd", &mlp_meta_loss_bwd);
  m.def("conv_forward_fwd", &conv_forward_fwd);
  m.def("conv_forward_bwd", &conv_forward_bwd);
  m.def("conv_loss_fwd", &conv_loss_fwd);
  m.def("conv_loss_bwd", &conv_loss_bwd);
  m.def("conv_grad_fwd", &conv_grad_fwd);
  m.def("conv_grad_bwd", &conv_grad_bwd);
  m.def("conv_hvp_fwd", &conv_hvp_fwd);
  m.def("conv_adapt_fwd", &conv_adapt_fwd);
  m.def("conv_adapt_bwd", &conv_adapt_bwd);
  m.def("conv_meta_loss_fwd", &conv_meta_loss_fwd);
  m.def("conv_meta_loss_bwd", &conv_meta_loss_bwd);
}
