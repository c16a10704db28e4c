#include <type_traits>

#include "inner/inner_steps.h"

namespace fastmeta {
namespace {

// Room for what the batch norms of each task meet.
Tensor statistics_of(const ConvCall& call, int64_t steps) {
  if (call.inputs.on_cuda() || call.inputs.narrow())
    throw py::value_error(std::string(call.op) + ": statistics must be asked for in float32 or float64 on a CPU, got others");
  return call.inputs.empty(call.with_tasks({steps + 1, 2, call.shape.normed()}));
}

// The query losses, and the query outputs and statistics where they are asked for; and into `grads` each task's meta-gradients that are
// asked for.
template <class Call>
py::tuple losses(const Call& call, const RateList& alpha, Handle support_y, Handle query_x, Handle query_y, int64_t steps, bool first_order,
                 bool return_outputs, const InnerSteps& how, Gradients& grads, const Tensor& statistics = Tensor()) {
  require_taken(call, how);
  const Tensor qx = call.examples(query_x, "query_x"), value = call.inputs.empty(call.with_tasks({}));
  if (std::is_same_v<Call, MlpCall> && return_outputs && call.inputs.on_cuda())
    throw py::value_error(std::string(call.op) + ": return_outputs must be False on CUDA");
  const Tensor outputs = return_outputs ? call.inputs.empty(call.with_tasks({call.count_of(qx), call.outputs})) : Tensor();
  const TargetTensors sy = call.targets(support_y, "support_y", call.count(), how.lead),
                      qy = call.targets(query_y, "query_y", call.count_of(qx));
  const Tensors dparams = grads.for_params(), dalpha = grads.for_rates();
  const Tensor dsx = grads.for_examples(call.inputs);
  const TargetTensors dsy = grads.for_targets(sy);
  const Tensor dqx = grads.for_examples(qx);
  const TargetTensors dqy = grads.for_targets(qy);
  by_dtype(value.dtype(), [&](auto zero) {
    using R = decltype(zero);
    MetaLossCall<R, typename Call::Network> args{call.shape, steps, first_order, grads.any(), pointers<const R>(call, call.params)};
    set_rates(args.rates, alpha);
    args.support = examples<R>(call, call.inputs, sy);
    args.query = examples<R>(call, qx, qy);
    args.loss = value.data<R>(), args.outputs = outputs.data<R>(), args.statistics = statistics.data<R>();
    args.dparams = pointers<R>(call, dparams);
    set_rates(args.drates, alpha, dalpha);
    args.support_grads = example_grads<R>(dsx, dsy);
    args.query_grads = example_grads<R>(dqx, dqy);
    how.set(args);
    launch(call, args, kernels<R>(call).meta_loss);
  });
  return pack({value, outputs, statistics});
}

}  // namespace

template <class Call>
py::tuple network_meta_loss_fwd(Handle params, Handle rates, Handle support_x, Handle support_y, Handle query_x, Handle query_y,
                                int64_t steps, Handle network, Str loss, bool first_order, bool return_outputs, Handle inner,
                                Handle needs) {
  const InnerSteps how(Call::kOps.meta_loss, inner, steps);
  const Call call(Call::kOps.meta_loss, params, support_x, network, loss, how.lead);
  const RateList alpha = call.rates(rates, steps);
  Gradients grads(call, needs, alpha.tensors);
  const py::tuple found = losses(call, alpha, support_y, query_x, query_y, steps, first_order, return_outputs, how, grads);
  return py::make_tuple(found, grads.made());
}

template <class Call, bool with_statistics>
py::tuple network_meta_loss_value_and_grad(Handle params, Handle rates, Handle support_x, Handle support_y, Handle query_x, Handle query_y,
                                           int64_t steps, Handle network, Str loss, bool first_order, bool return_outputs, Handle inner,
                                           Handle needs, Handle cotangents) {
  const InnerSteps how(Call::kOps.meta_loss, inner, steps);
  const Call call(Call::kOps.meta_loss, params, support_x, network, loss, how.lead);
  const RateList alpha = call.rates(rates, steps);
  Gradients grads(call, needs, alpha.tensors);
  Tensor statistics;
  if constexpr (with_statistics) statistics = statistics_of(call, steps);
  const py::tuple found = losses(call, alpha, support_y, query_x, query_y, steps, first_order, return_outputs, how, grads, statistics);
  return py::make_tuple(found, grads.finish(grads.made(), cotangents.is_none() ? Tensor() : loss_cotangent(call, cotangents)));
}

template <class Call>
py::tuple network_meta_loss_bwd(Handle cotangents, Handle saved, Handle params, Handle rates, Handle support_x, Handle support_y,
                                Handle query_x, Handle query_y, int64_t steps, Handle network, Str loss, bool first_order,
                                bool return_outputs, Handle inner, Handle needs) {
  const InnerSteps how(Call::kOps.meta_loss, inner, steps);
  const Call call(Call::kOps.meta_loss, params, support_x, network, loss, how.lead);
  py::object made = py::reinterpret_borrow<py::object>(saved);
  if (!py::len(made))
    made = network_meta_loss_fwd<Call>(params, rates, support_x, support_y, query_x, query_y, steps, network, loss, first_order, false,
                                       inner, needs)[1];
  return Gradients(call, needs, call.rates(rates, steps).tensors).finish(made, loss_cotangent(call, cotangents));
}

#define INSTANTIATE_GRAD(CALL, STATISTICS)                                                                                               \
  template py::tuple network_meta_loss_value_and_grad<CALL, STATISTICS>(Handle, Handle, Handle, Handle, Handle, Handle, int64_t, Handle, \
                                                                        Str, bool, bool, Handle, Handle, Handle);
#define INSTANTIATE(CALL)                                                                                                                  \
  template py::tuple network_meta_loss_fwd<CALL>(Handle, Handle, Handle, Handle, Handle, Handle, int64_t, Handle, Str, bool, bool, Handle, \
                                                 Handle);                                                                                  \
  template py::tuple network_meta_loss_bwd<CALL>(Handle, Handle, Handle, Handle, Handle, Handle, Handle, Handle, int64_t, Handle, Str,     \
                                                 bool, bool, Handle, Handle);                                                              \
  INSTANTIATE_GRAD(CALL, false)
INSTANTIATE(MlpCall)
INSTANTIATE(ConvCall)
INSTANTIATE_GRAD(ConvCall, true)

}  // namespace fastmeta
