#include "inner/inner_steps.h"

namespace fastmeta {
namespace {

// The adapted parameters, flat, and for kernels that take it the trajectory [T, steps, P] where it is asked for.
template <class Call>
std::pair<py::tuple, Tensor> adapt(const Call& call, const RateList& rates, const TargetTensors& y, int64_t steps, const InnerSteps& how,
                                   bool keep) {
  const Tensors adapted = call.empty_params(call.inputs);
  int64_t total = 0;
  for (const Tensor& p : adapted) total += p ? p.numel() : 0;
  const Tensor trajectory = keep && call.by_cuda() ? call.inputs.empty({total * steps}) : Tensor();
  by_dtype(call.inputs.dtype(), [&](auto zero) {
    using R = decltype(zero);
    AdaptCall<R, typename Call::Network> args{call.shape, steps, false, pointers<const R>(call, call.params)};
    set_rates(args.rates, rates);
    args.support = examples<R>(call, call.inputs, y);
    args.trajectory = trajectory.data<R>();
    args.adapted = pointers<R>(call, adapted);
    how.set(args);
    launch(call, args, kernels<R>(call).adapt_fwd);
  });
  return {pack(adapted), trajectory};
}

}  // namespace

template <class Call>
py::tuple network_adapt_fwd(Handle params, Handle rates, Handle inputs, Handle targets, int64_t steps, Handle network, Str loss, bool,
                            Handle inner, Handle needs) {
  const InnerSteps how(Call::kOps.adapt, inner, steps);
  const Call call(Call::kOps.adapt, params, inputs, network, loss, how.lead);
  require_taken(call, how);
  const TargetTensors y = call.targets(targets, "targets", call.count(), how.lead);
  const auto [outputs, trajectory] = adapt(call, call.rates(rates, steps), y, steps, how, any(read_needs(needs)));
  return py::make_tuple(outputs, trajectory ? py::make_tuple(trajectory.object()) : py::tuple());
}

template <class Call>
py::tuple network_adapt_bwd(Handle cotangents, Handle saved, Handle params, Handle rates, Handle inputs, Handle targets, int64_t steps,
                            Handle network, Str loss, bool first_order, Handle inner, Handle needs) {
  const InnerSteps how(Call::kOps.adapt, inner, steps);
  const Call call(Call::kOps.adapt, params, inputs, network, loss, how.lead);
  const TargetTensors y = call.targets(targets, "targets", call.count(), how.lead);
  const RateList alpha = call.rates(rates, steps);
  const py::tuple kept(py::reinterpret_borrow<py::object>(saved));
  Tensor trajectory;
  if (call.by_cuda()) trajectory = kept.size() ? Tensor(call.op, kept[0], "saved") : adapt(call, alpha, y, steps, how, true).second;
  const Tensors v = call.cotangents_of_params(cotangents);
  Gradients grads(call, needs, alpha.tensors);
  const Tensors dparams = grads.for_params(), dalpha = grads.for_rates();
  const Tensor dx = grads.for_examples(call.inputs);
  const TargetTensors dy = grads.for_targets(y);
  by_dtype(call.inputs.dtype(), [&](auto zero) {
    using R = decltype(zero);
    AdaptCall<R, typename Call::Network> args{call.shape, steps, first_order, pointers<const R>(call, call.params)};
    set_rates(args.rates, alpha);
    args.support = examples<R>(call, call.inputs, y);
    args.trajectory = trajectory.data<R>();
    args.dadapted = pointers<const R>(call, v);
    args.dparams = pointers<R>(call, dparams);
    set_rates(args.drates, alpha, dalpha);
    args.support_grads = example_grads<R>(dx, dy);
    how.set(args);
    launch(call, args, kernels<R>(call).adapt_bwd);
  });
  return grads.finish(grads.made(), Tensor());
}

#define INSTANTIATE(CALL)                                                                                                 \
  template py::tuple network_adapt_fwd<CALL>(Handle, Handle, Handle, Handle, int64_t, Handle, Str, bool, Handle, Handle); \
  template py::tuple network_adapt_bwd<CALL>(Handle, Handle, Handle, Handle, Handle, Handle, int64_t, Handle, Str, bool, Handle, Handle);
INSTANTIATE(MlpCall)
INSTANTIATE(ConvCall)

}  // namespace fastmeta
