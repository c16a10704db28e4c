#include "inner/mlp_arguments.h"
#include "ops.h"

namespace fastmeta {

py::tuple mlp_meta_loss_fwd(Handle params, Handle rates, Handle support_x, Handle support_y, Handle query_x, Handle query_y, int64_t steps,
                            Str activation, Str loss, bool first_order, Handle needs) {
  MlpCall call("mlp_meta_loss", params, support_x, activation, loss);
  Tensors alpha = call.rates(rates, steps);
  Tensor qx = call.examples(query_x, "query_x"), value = call.inputs.empty(call.with_tasks({}));
  Tensor sy = call.targets(support_y, "support_y", call.count()), qy = call.targets(query_y, "query_y", call.count_of(qx));
  Gradients grads(call, needs, alpha);
  Tensors dparams = grads.for_params(), dalpha = grads.for_rates();
  Tensor dsx = grads.for_examples(call.inputs), dsy = grads.for_examples(sy);
  Tensor dqx = grads.for_examples(qx), dqy = grads.for_examples(qy);
  by_dtype(value.dtype(), [&](auto zero) {
    using R = decltype(zero);
    MlpMetaLoss<R> args{call.shape, steps, first_order, grads.any()};
    args.params = pointers<const R>(call, call.params);
    set_rates(args.rates, alpha, alpha);
    args.support = examples<R>(call, call.inputs, sy);
    args.query = examples<R>(call, qx, qy);
    args.loss = value.data<R>();
    args.dparams = pointers<R>(call, dparams);
    set_rates(args.drates, alpha, dalpha);
    args.support_grads = {dsx.data<R>(), dsy.data<R>()};
    args.query_grads = {dqx.data<R>(), dqy.data<R>()};
    launch(call, args, FASTMETA_KERNEL(mlp_meta_loss));
  });
  return py::make_tuple(py::make_tuple(value.object()), grads.made());
}

py::tuple mlp_meta_loss_bwd(Handle cotangents, Handle saved, Handle params, Handle rates, Handle support_x, Handle support_y,
                            Handle query_x, Handle query_y, int64_t steps, Str activation, Str loss, bool first_order, Handle needs) {
  MlpCall call("mlp_meta_loss", params, support_x, activation, loss);
  py::object made = py::reinterpret_borrow<py::object>(saved);
  if (!py::len(made))
    made = mlp_meta_loss_fwd(params, rates, support_x, support_y, query_x, query_y, steps, activation, loss, first_order, needs)[1];
  const Tensors alpha = call.rates(rates, steps, false);
  return Gradients(call, needs, alpha).finish(made, loss_cotangent(call, cotangents));
}

}  // namespace fastmeta
