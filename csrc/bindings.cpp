// The table of contents of fastmeta._C.
#include "cpu/kernels.h"
#include "mlp.h"
#include "ops.h"
#include "parallel.h"
#include "tensor.h"
#ifdef FASTMETA_CUDA
#include "cuda/kernels.h"
#endif

namespace {
namespace py = pybind11;

py::dict build_info() {
  py::dict info;
#ifdef FASTMETA_CUDA
  info["cuda"] = FASTMETA_CUDA;  // the architectures
#else
  info["cuda"] = py::none();
#endif
  info["compiler"] = FASTMETA_COMPILER;
  return info;
}

py::list cuda_ops() {
  py::list ops;
#ifdef FASTMETA_CUDA
  for (const char* op : fastmeta::cuda::ops) ops.append(op);
#endif
  return ops;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using namespace fastmeta;
  m.doc() = "fastmeta's native kernels; see csrc/ops.h for the conventions";

  m.attr("max_layers") = kMaxLayers;
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
  m.def("conv_meta_loss", &conv_meta_loss);
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
}
