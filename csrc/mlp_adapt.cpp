#include "mlp_arguments.h"
#include "ops.h"

namespace fastmeta {
namespace {

bool takes_trajectory(const MlpCall& call) {
  if (call.inputs.on_cuda()) return true;
  return by_dtype(call.inputs.dtype(), [](auto zero) { return cpu<decltype(zero)>().mlp_adapt_keeps; });
}

// The adapted parameters, flat, and for kernels that take it the trajectory [T, steps, P] where it is asked for.
std::pair<py::tuple, Tensor> adapt(const MlpCall& call, const Tensors& rates, const Tensor& y, int64_t steps, bool keep) {
  keep = keep && takes_trajectory(call);
  Tensors adapted = call.empty_params();
  int64_t total = 0;
  for (const Tensor& p : adapted) total += p ? p.numel() : 0;
  Tensor trajectory = keep ? call.inputs.empty({total * steps}) : Tensor();
  by_dtype(call.inputs.dtype(), [&](auto zero) {
    using R = decltype(zero);
    MlpAdapt<R> args{call.shape,
                     steps,
                     false,
                     pointers<const R>(call, call.params),
                     rate_pointers<const R>(rates),
                     {call.count(), call.inputs.data<R>(), y.data<void>()},
                     trajectory.data<R>(),
                     pointers<R>(call, adapted),
                     {},
                     {},
                     {},
                     {}};
    launch(call, args, FASTMETA_KERNEL(mlp_adapt_fwd));
  });
  return {pack(adapted), trajectory};
}

}  // namespace

py::tuple mlp_adapt_fwd(Handle params, Handle rates, Handle inputs, Handle targets, int64_t steps, Str activation, Str loss, bool,
                        Handle needs) {
  MlpCall call("mlp_adapt", params, inputs, activation, loss);
  Tensor y = call.targets(targets, "targets", call.count());
  auto [outputs, trajectory] = adapt(call, call.rates(rates, steps), y, steps, any(read_needs(needs)));
  return py::make_tuple(outputs, trajectory ? py::make_tuple(trajectory.object()) : py::tuple());
}

py::tuple mlp_adapt_bwd(Handle cotangents, Handle saved, Handle params, Handle rates, Handle inputs, Handle targets, int64_t steps,
                        Str activation, Str loss, bool first_order, Handle needs) {
  MlpCall call("mlp_adapt", params, inputs, activation, loss);
  Tensor y = call.targets(targets, "targets", call.count());
  Tensors alpha = call.rates(rates, steps);
  py::tuple given(py::reinterpret_borrow<py::object>(cotangents)), kept(py::reinterpret_borrow<py::object>(saved));
  Tensor trajectory;
  if (takes_trajectory(call)) trajectory = kept.size() ? Tensor(call.op, kept[0], "saved") : adapt(call, alpha, y, steps, true).second;
  py::list dadapted;
  size_t next = 0;
  for (const Tensor& p : call.params) dadapted.append(p ? py::object(given[next++]) : py::none());
  Tensors v = call.like_params(dadapted, "cotangents");
  Gradients grads(call, needs, alpha);
  Tensors dparams = grads.for_params(), dalpha = grads.for_rates();
  Tensor dx = grads.for_examples(call.inputs), dy = grads.for_examples(y);
  by_dtype(call.inputs.dtype(), [&](auto zero) {
    using R = decltype(zero);
    MlpAdapt<R> args{call.shape,
                     steps,
                     first_order,
                     pointers<const R>(call, call.params),
                     rate_pointers<const R>(alpha),
                     {call.count(), call.inputs.data<R>(), y.data<void>()},
                     trajectory.data<R>(),
                     {},
                     pointers<const R>(call, v),
                     pointers<R>(call, dparams),
                     drate_pointers<R>(alpha, dalpha),
                     {dx.data<R>(), dy.data<R>()}};
    launch(call, args, FASTMETA_KERNEL(mlp_adapt_bwd));
  });
  return grads.finish(grads.made(), Tensor());
}

}  // namespace fastmeta
