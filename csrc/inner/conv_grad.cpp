#include "inner/conv_arguments.h"

namespace fastmeta {

py::tuple conv_grad_fwd(Handle params, Handle inputs, Handle targets, Handle blocks, Str loss, Handle) {
  const ConvCall call("conv_grad", params, inputs, blocks, loss);
  const Tensor y = call.targets(targets, "targets", call.count()), value = call.inputs.empty(call.with_tasks({}));
  Tensors grads = call.empty_params();
  by_dtype(value.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ConvLoss<R> args{call.net, pointers<const R>(call, call.params), examples<R>(call, call.inputs, y)};
    args.loss = value.data<R>();
    args.dparams = pointers<R>(call, grads);
    py::gil_scoped_release release;
    cpu<R>().conv_loss(args);
  });
  grads.insert(grads.begin(), value);
  return py::make_tuple(pack(grads), py::tuple());
}

py::tuple conv_grad_bwd(Handle cotangents, Handle, Handle params, Handle inputs, Handle targets, Handle blocks, Str loss, Handle needs) {
  const ConvCall call("conv_grad", params, inputs, blocks, loss);
  const Tensor y = call.targets(targets, "targets", call.count()), dloss = loss_cotangent(call, cotangents);
  const Tensors vectors = call.cotangents_of_params(cotangents, 1);
  Gradients grads(call, needs);
  const Tensors dparams = grads.for_params();
  const Tensor dx = grads.for_examples(call.inputs), dy = grads.for_examples(y);
  by_dtype(dloss.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ConvCurvature<R> args{call.net, pointers<const R>(call, call.params), pointers<const R>(call, vectors)};
    args.examples = examples<R>(call, call.inputs, y);
    args.dloss = dloss.data<R>();
    args.dparams = pointers<R>(call, dparams);
    args.grads = {dx.data<R>(), dy.data<R>()};
    py::gil_scoped_release release;
    cpu<R>().conv_hvp(args);
  });
  return grads.finish(grads.made(), Tensor());
}

}  // namespace fastmeta
