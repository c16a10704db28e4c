#include "inner/mlp_arguments.h"
#include "ops.h"

namespace fastmeta {

py::tuple mlp_loss_fwd(Handle params, Handle inputs, Handle targets, Str activation, Str loss, Handle needs) {
  MlpCall call("mlp_loss", params, inputs, activation, loss);
  Tensor y = call.targets(targets, "targets", call.count()), value = call.inputs.empty(call.with_tasks({}));
  Gradients grads(call, needs);
  Tensors dparams = grads.for_params();
  Tensor dx = grads.for_examples(call.inputs), dy = grads.for_examples(y);
  by_dtype(value.dtype(), [&](auto zero) {
    using R = decltype(zero);
    MlpLoss<R> args{call.shape,      pointers<const R>(call, call.params), examples<R>(call, call.inputs, y),
                    value.data<R>(), pointers<R>(call, dparams),           {dx.data<R>(), dy.data<R>()}};
    launch(call, args, FASTMETA_KERNEL(mlp_loss));
  });
  return py::make_tuple(py::make_tuple(value.object()), grads.made());
}

py::tuple mlp_loss_bwd(Handle cotangents, Handle saved, Handle params, Handle inputs, Handle targets, Str activation, Str loss,
                       Handle needs) {
  MlpCall call("mlp_loss", params, inputs, activation, loss);
  py::object made = py::reinterpret_borrow<py::object>(saved);
  if (!py::len(made)) made = mlp_loss_fwd(params, inputs, targets, activation, loss, needs)[1];
  return Gradients(call, needs).finish(made, loss_cotangent(call, cotangents));
}

}  // namespace fastmeta
