#include "inner/mlp_arguments.h"
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
    MlpAdapt<R> args{call.shape, steps, false};
    args.params = pointers<const R>(call, call.params);
    set_rates(args.rates, rates, rates);
    args.support = examples<R>(call, call.inputs, y);
    args.trajectory = trajectory.data<R>();
    args.adapted = pointers<R>(call, adapted);
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
  const py::tuple kept(py::reinterpret_borrow<py::object>(saved));
  Tensor trajectory;
  if (takes_trajectory(call)) trajectory = kept.size() ? Tensor(call.op, kept[0], "saved") : adapt(call, alpha, y, steps, true).second;
  Tensors v = call.cotangents_of_params(cotangents);
  Gradients grads(call, needs, alpha);
  Tensors dparams = grads.for_params(), dalpha = grads.for_rates();
  Tensor dx = grads.for_examples(call.inputs), dy = grads.for_examples(y);
  by_dtype(call.inputs.dtype(), [&](auto zero) {
    using R = decltype(zero);
    MlpAdapt<R> args{call.shape, steps, first_order};
    args.params = pointers<const R>(call, call.params);
    set_rates(args.rates, alpha, alpha);
    args.support = examples<R>(call, call.inputs, y);
    args.trajectory = trajectory.data<R>();
    args.dadapted = pointers<const R>(call, v);
    args.dparams = pointers<R>(call, dparams);
    set_rates(args.drates, alpha, dalpha);
    args.support_grads = {dx.data<R>(), dy.data<R>()};
    launch(call, args, FASTMETA_KERNEL(mlp_adapt_bwd));
  });
  return grads.finish(grads.made(), Tensor());
}

}  // namespace fastmeta
