#include "arguments.h"
#include "cpu/kernels.h"
#include "ops.h"

namespace fastmeta {
namespace {

const char* const kOp = "conv_meta_loss";

// `blocks`: (stride, padding, groups, eps, relu, pool) of each; groups of the norm's channels, 0: batch norm, -1: no norm.
ConvNet read_net(Handle blocks, const std::vector<Tensor>& params, const Tensor& x, const Tensor& y) {
  const auto list = read_list(kOp, "blocks", blocks);
  if (list.empty() || list.size() > size_t(kMaxConvs)) throw py::value_error("conv_meta_loss: blocks must be 1 to 8");
  if (params.size() != 4 * list.size() + 2 || !params[4 * list.size()])
    throw py::value_error("conv_meta_loss: params must hold 4 for each of blocks and 2 for the linear layer");
  if (x.dim() != 5) throw py::value_error("conv_meta_loss: support_x must be [T, n, channels, height, width]");
  ConvNet net{
      x.size(0), int(list.size()), {}, params[4 * list.size()].size(0), y.dtype() == DType::int64 ? Loss::cross_entropy : Loss::mse};
  int64_t in = x.size(2), height = x.size(3), width = x.size(4);
  for (size_t l = 0; l < list.size(); l++) {
    const auto spec = list[l].cast<std::tuple<int64_t, int64_t, int64_t, double, bool, int64_t>>();
    const auto& [stride, padding, groups, eps, relu, pool] = spec;
    const Tensor& weight = params[4 * l];
    if (!weight || weight.dim() != 4) throw py::value_error("conv_meta_loss: params must hold kernels [out, in, 3, 3]");
    const ConvNorm norm = groups < 0 ? ConvNorm::none : groups ? ConvNorm::group : ConvNorm::batch;
    ConvBlock& b = net.block[l];
    b = {in, height, width, weight.size(0), stride, padding, norm, groups > 0 ? groups : weight.size(0), relu, pool, eps};
    if (stride < 1 || padding < 0 || padding > 2 || pool < 1 || pool > 2 || height + 2 * padding < 3 || width + 2 * padding < 3 ||
        b.out < 1 || b.out % b.groups || b.out_height() < 1 || b.out_width() < 1)
      throw py::value_error(
          "conv_meta_loss: blocks must have a stride, padding up to 2, groups that divide the channels, pool 1 or 2, and leave a pixel");
    require_shape(kOp, "params", weight, {b.out, in, 3, 3});
    for (size_t i = 1; i < 4; i++)
      if (const Tensor& p = params[4 * l + i]) require_shape(kOp, "params", p, {b.out});
    if (norm == ConvNorm::none && (params[4 * l + 2] || params[4 * l + 3]))
      throw py::value_error("conv_meta_loss: params must have no norm's where there is none");
    in = b.out, height = b.out_height(), width = b.out_width();
  }
  require_shape(kOp, "params", params[4 * list.size()], {net.outputs, in * height * width});
  if (const Tensor& bias = params.back()) require_shape(kOp, "params", bias, {net.outputs});
  return net;
}

template <class R>
MlpExamples<R> examples(const ConvNet& net, const char* name, const Tensor& x, const Tensor& y) {
  const ConvBlock& b = net.block[0];
  require_shape(kOp, name, x, {net.tasks, x.dim() > 1 ? x.size(1) : 0, b.in, b.height, b.width});
  Shape expected{net.tasks, x.size(1)};
  if (net.loss == Loss::mse) expected.push_back(net.outputs);
  if (y) require_shape(kOp, name, y, expected);
  return {x.size(1), x.data<R>(), y.data<void>()};
}

}  // namespace

// The losses [T] of the query, or without query_y its outputs [T, n, outputs], and the gradients of each task's loss to the params and
// rates that `needs` marks, [T, ...]. rates: one tensor (() or [steps]), or one like each of params, each also with leading [steps].
py::tuple conv_meta_loss(Handle params_, Handle rates_, Handle support_x, Handle support_y, Handle query_x, Handle query_y, int64_t steps,
                         Handle blocks, bool first_order, Handle needs_) {
  const std::vector<Tensor> params = read_tensors(kOp, "params", params_), rates = read_tensors(kOp, "rates", rates_);
  const Tensor sx = read_floating(kOp, "support_x", support_x), sy(kOp, support_y, "support_y");
  const Tensor qx = read_floating(kOp, "query_x", query_x), qy(kOp, query_y, "query_y");
  if (steps < 0) throw py::value_error("conv_meta_loss: steps must be at least 0, got " + std::to_string(steps));
  require_cpu(kOp, {&sx, &sy, &qx, &qy});
  require_alike(kOp, {&sx, &sy, &qy});
  if (!sy || (qy && qy.dtype() != sy.dtype())) throw py::type_error("conv_meta_loss: support_y must be a tensor, and query_y of its dtype");
  const ConvNet net = read_net(blocks, params, sx, sy);
  if (rates.size() != 1 && rates.size() != params.size())
    throw py::value_error("conv_meta_loss: rates must be one, or one like each of params");
  for (size_t i = 0; i < rates.size(); i++)
    if (bool(rates[i]) != (rates.size() == 1 || params[i]))
      throw py::value_error("conv_meta_loss: rates must have a tensor where params has one");
  for (const Tensor& p : params) require_alike(kOp, {&sx, &qx, &p});
  const std::vector<bool> needs = read_needs(kOp, needs_, params.size() + rates.size());
  const bool per_step = rates[0].dim() > (rates.size() > 1 ? params[0].dim() : 0);
  std::vector<Tensor> grads;
  for (size_t i = 0; i < needs.size(); i++) {
    const Tensor& like = i < params.size() ? params[i] : rates[i - params.size()];
    if (i >= params.size() && like) {
      require_alike(kOp, {&sx, &like});
      require_shape(kOp, "rates", like, with_tasks(per_step, steps, rates.size() > 1 ? params[i - params.size()].shape() : Shape{}));
    }
    grads.push_back(needs[i] && like ? sx.empty(with_tasks(true, net.tasks, like.shape())) : Tensor());
  }
  const Tensor found = qy ? sx.empty({net.tasks}) : sx.empty({net.tasks, qx.size(1), net.outputs});
  by_dtype(sx.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ConvMetaLoss<R> args{net,
                         steps,
                         first_order,
                         any(needs),
                         {},
                         {},
                         examples<R>(net, "support", sx, sy),
                         examples<R>(net, "query", qx, qy),
                         qy ? found.data<R>() : nullptr,
                         qy ? nullptr : found.data<R>(),
                         {},
                         {}};
    for (size_t i = 0; i < params.size(); i++) args.params.value[i] = params[i].data<R>(), args.dparams.value[i] = grads[i].data<R>();
    args.rates.shared = rates.size() == 1, args.rates.per_element = rates.size() > 1, args.rates.per_step = per_step;
    args.drates.shared = args.rates.shared, args.drates.per_element = args.rates.per_element, args.drates.per_step = per_step;
    for (size_t i = 0; i < rates.size(); i++) {
      args.rates.value[i] = rates[i].data<R>(), args.drates.value[i] = grads[params.size() + i].data<R>();
    }
    py::gil_scoped_release release;
    cpu<R>().conv_meta_loss(args);
  });
  return py::make_tuple(found.object(), pack(grads));
}

}  // namespace fastmeta
