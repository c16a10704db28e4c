#include "inner/mlp_call.h"

namespace fastmeta {
namespace {

constexpr char kResidualNorm[] = " + residual_norm";  // what follows the activation of a residual block

}  // namespace

MlpCall::MlpCall(const char* op, Handle params_, Handle inputs_, Handle network, Str loss_, const Shape& lead_)
    : NetworkCall(op, inputs_, 1, loss_, lead_) {
  const auto list = read_list(op, "params", params_);
  std::string activation = network.cast<std::string>();
  const size_t end = activation.find(kResidualNorm);
  shape.residual_norm = end != std::string::npos;
  if (shape.residual_norm) activation.resize(end);
  if (shape.residual_norm && by_cuda()) throw py::value_error(std::string(op) + ": residual_norm must run on a CPU");
  const size_t pairs = list.size() / 2;
  if (list.size() % 2 || pairs < size_t(1 + shape.residual_norm) || pairs > size_t(kMaxLayers))
    throw py::value_error(std::string(op) + ": params must hold a weight and a bias for 1 to 8 layers");
  shape.tasks = tasks;
  shape.layers = int(pairs) - shape.residual_norm;
  shape.activation =
      read_enum<Activation>(op, "activation", activation, {"relu", "tanh", "gelu", "sigmoid", "identity", "silu", "leaky_relu", "sine"});
  shape.loss = loss;
  shape.tf32 = inputs.dtype() == DType::float32 && by_cuda() && allows_tf32("matmul");
  shape.width[0] = inputs.size(-1);
  for (size_t i = 0; i < list.size(); i++) {
    const bool is_weight = i % 2 == 0 && int(i / 2) < shape.layers;
    bool by_columns = false;
    const Tensor p = read_floating_or_none(op, "params", list[i], inputs.narrow(), is_weight && !by_cuda() ? &by_columns : nullptr);
    if (is_weight) {
      if (!p || p.dim() < 2) throw py::value_error(std::string(op) + ": params must hold weights [T, out, in] or [out, in]");
      shape.width[i / 2 + 1] = p.size(by_columns ? -1 : -2);
      if (shape.width[i / 2 + 1] < 1) throw py::value_error(std::string(op) + ": params must have weights with at least one output");
      turned[i / 2] = by_columns;
    }
    add_param(p, by_columns);
  }
  outputs = shape.width[shape.layers];
  if (shape.residual_norm && (!params[params.size() - 2] || outputs != shape.width[0]))
    throw py::value_error(std::string(op) + ": params must end with a norm's weight, and give as many outputs as they take inputs");
}

Shape MlpCall::core(int tensor) const {
  if (tensor / 2 == shape.layers) return {shape.width[shape.layers]};
  const int64_t out = shape.width[tensor / 2 + 1];
  if (tensor % 2) return {out};
  return {out, shape.width[tensor / 2]};
}

}  // namespace fastmeta
