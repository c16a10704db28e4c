#include "inner/mlp_arguments.h"
#include "ops.h"

namespace fastmeta {

py::tuple mlp_grad_fwd(Handle params, Handle inputs, Handle targets, Str activation, Str loss, Handle) {
  MlpCall call("mlp_grad", params, inputs, activation, loss);
  Tensor y = call.targets(targets, "targets", call.count()), value = call.inputs.empty(call.with_tasks({}));
  Tensors grads = call.empty_params();
  by_dtype(value.dtype(), [&](auto zero) {
    using R = decltype(zero);
    MlpLoss<R> args{
        call.shape, pointers<const R>(call, call.params), examples<R>(call, call.inputs, y), value.data<R>(), pointers<R>(call, grads), {}};
    launch(call, args, FASTMETA_KERNEL(mlp_loss));
  });
  grads.insert(grads.begin(), value);
  return py::make_tuple(pack(grads), py::tuple());
}

py::tuple mlp_grad_bwd(Handle cotangents, Handle, Handle params, Handle inputs, Handle targets, Str activation, Str loss, Handle needs) {
  MlpCall call("mlp_grad", params, inputs, activation, loss);
  Tensor y = call.targets(targets, "targets", call.count()), dloss = loss_cotangent(call, cotangents);
  Tensors vectors = call.cotangents_of_params(cotangents, 1);
  Gradients grads(call, needs);
  Tensors dparams = grads.for_params();
  Tensor dx = grads.for_examples(call.inputs), dy = grads.for_examples(y);
  by_dtype(dloss.dtype(), [&](auto zero) {
    using R = decltype(zero);
    MlpCurvature<R> args{
        call.shape,      pointers<const R>(call, call.params), pointers<const R>(call, vectors), examples<R>(call, call.inputs, y),
        dloss.data<R>(), pointers<R>(call, dparams),           {dx.data<R>(), dy.data<R>()}};
    launch(call, args, FASTMETA_KERNEL(mlp_hvp));
  });
  return grads.finish(grads.made(), Tensor());
}

}  // namespace fastmeta
