// The table of contents of fastmeta._C.
#include <pybind11/stl.h>

#include "build.h"  // of setup.py
#include "runtime/cpu/kernels.h"
#include "inner/conv.h"
#include "inner/mlp.h"
#include "inner/network_bindings.h"
#include "runtime/describe.h"
#include "runtime/given.h"
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
  m.def("describe", &describe);
  m.def("give_outputs", &give_outputs);
  m.def("init_parallel", &init_parallel);
  m.def("num_threads", &num_threads);
  m.def("build_info", &build_info);
  m.def("cuda_ops", &cuda_ops);
  m.def("isa", &isa);
  m.def("isas", &isas);
  m.def("set_isa", &set_isa);
  m.def("label_out_of_range", &label_out_of_range);
  m.def("empty_class", &empty_class);

#define FASTMETA_DEFINE(OP)                \
  m.def(#OP "_fwd", declining<&OP##_fwd>); \
  m.def(#OP "_bwd", &OP##_bwd)
  FASTMETA_DEFINE(prototypes);
  FASTMETA_DEFINE(proto_log_softmax);
  FASTMETA_DEFINE(proto_loss);
  m.def("proto_loss_value_and_grad", declining<&proto_loss_value_and_grad>);
  FASTMETA_DEFINE(proto_loss_loo);
  FASTMETA_DEFINE(symmetric_loss);
  FASTMETA_DEFINE(matching_log_probs);
  FASTMETA_DEFINE(sgd_step);
  FASTMETA_DEFINE(momentum_step);
  FASTMETA_DEFINE(adam_step);
  define_network<MlpCall>(m, "mlp");
  define_network<ConvCall>(m, "conv");
  m.def("conv_meta_loss_with_statistics", declining<&network_meta_loss_value_and_grad<ConvCall, true>>);
}
