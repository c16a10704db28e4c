#include "inner/mlp_arguments.h"

namespace fastmeta {

MlpCall::MlpCall(const char* op, Handle params_, Handle inputs_, Str activation, Str loss_) : NetworkCall(op, inputs_, 1, loss_) {
  const auto list = read_list(op, "params", params_);
  const size_t layers = list.size() / 2;
  if (list.size() % 2 || layers < 1 || layers > size_t(kMaxLayers))
    throw py::value_error(std::string(op) + ": params must hold a weight and a bias for 1 to 8 layers");
  shape.tasks = tasks;
  shape.layers = int(layers);
  shape.activation = read_enum<Activation>(op, "activation", activation, {"relu", "tanh", "gelu", "sigmoid", "identity"});
  shape.loss = loss;
  shape.tf32 = inputs.dtype() == DType::float32 && (inputs.on_cuda() || cpu<float>().mlp_tf32) && allows_tf32();
  shape.width[0] = inputs.size(-1);
  for (size_t i = 0; i < list.size(); i++) {
    const Tensor p = read_floating_or_none(op, "params", list[i]);
    if (i % 2 == 0) {
      if (!p || p.dim() < 2) throw py::value_error(std::string(op) + ": params must hold weights [T, out, in] or [out, in]");
      shape.width[i / 2 + 1] = p.size(-2);
      if (p.size(-2) < 1) throw py::value_error(std::string(op) + ": params must have weights with at least one output");
    }
    add_param(p);
  }
  outputs = shape.width[layers];
}

Shape MlpCall::core(int tensor) const {
  const int64_t out = shape.width[tensor / 2 + 1];
  if (tensor % 2) return {out};
  return {out, shape.width[tensor / 2]};
}

template <class R>
MlpParams<R> pointers(const MlpCall& call, const Tensors& tensors) {
  MlpParams<R> found;
  for (size_t i = 0; i < tensors.size(); i++) {
    if (!tensors[i]) continue;
    (i % 2 ? found.bias[i / 2] : found.weight[i / 2]) = tensors[i].data<R>();
    (i % 2 ? found.bias_stride[i / 2] : found.weight_stride[i / 2]) = call.stride(tensors[i], i);
  }
  return found;
}

template <class Args>
void launch(const MlpCall& call, const Args& args, Kernel<Args> kernel) {
  if (!call.inputs.on_cuda()) {
    py::gil_scoped_release release;
    return kernel.on_cpu(args);
  }
  if (!kernel.on_cuda) throw std::runtime_error(std::string(call.op) + ": the extension must be built with CUDA, got CUDA tensors");
#ifdef FASTMETA_CUDA
  if (!call.tasks) return;
  cuda::DeviceGuard guard(call.inputs.device_index());
  Tensor memory = call.inputs.empty({(kernel.workspace(args) + 7) / 8 * (8 / call.inputs.item_size())});
  const char* error = kernel.on_cuda(args, memory.data<void>(), current_stream(call.inputs));
  require_launched(call.op, error);
#endif
}

#define INSTANTIATE_TYPE(R)                                          \
  template MlpParams<R> pointers<R>(const MlpCall&, const Tensors&); \
  template MlpParams<const R> pointers<const R>(const MlpCall&, const Tensors&);
#define INSTANTIATE_LAUNCH(ARGS) template void launch<ARGS>(const MlpCall&, const ARGS&, Kernel<ARGS>);
#define INSTANTIATE_ALL(R)            \
  INSTANTIATE_TYPE(R)                 \
  INSTANTIATE_LAUNCH(MlpForward<R>)   \
  INSTANTIATE_LAUNCH(MlpLoss<R>)      \
  INSTANTIATE_LAUNCH(MlpCurvature<R>) \
  INSTANTIATE_LAUNCH(MlpAdapt<R>)     \
  INSTANTIATE_LAUNCH(MlpMetaLoss<R>)
INSTANTIATE_ALL(float)
INSTANTIATE_ALL(double)

}  // namespace fastmeta
