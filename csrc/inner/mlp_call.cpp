#include "inner/mlp_call.h"

namespace fastmeta {

MlpCall::MlpCall(const char* op, Handle params_, Handle inputs_, Handle activation, Str loss_, const Shape& lead_)
    : NetworkCall(op, inputs_, 1, loss_, lead_) {
  const auto list = read_list(op, "params", params_);
  const size_t layers = list.size() / 2;
  if (list.size() % 2 || layers < 1 || layers > size_t(kMaxLayers))
    throw py::value_error(std::string(op) + ": params must hold a weight and a bias for 1 to 8 layers");
  shape.tasks = tasks;
  shape.layers = int(layers);
  shape.activation = read_enum<Activation>(op, "activation", activation.cast<std::string>(),
                                           {"relu", "tanh", "gelu", "sigmoid", "identity", "silu", "leaky_relu", "sine"});
  shape.loss = loss;
  shape.tf32 = inputs.dtype() == DType::float32 && (inputs.on_cuda() || cpu<float>().heeds_tf32) && allows_tf32("matmul");
  shape.width[0] = inputs.size(-1);
  for (size_t i = 0; i < list.size(); i++) {
    const Tensor p = read_floating_or_none(op, "params", list[i], inputs.narrow());
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

}  // namespace fastmeta
