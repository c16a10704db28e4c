#include "inner/conv_arguments.h"

namespace fastmeta {

py::tuple conv_loss_fwd(Handle params, Handle inputs, Handle targets, Handle blocks, Str loss, Handle needs) {
  const ConvCall call("conv_loss", params, inputs, blocks, loss);
  const Tensor y = call.targets(targets, "targets", call.count()), value = call.inputs.empty(call.with_tasks({}));
  Gradients grads(call, needs);
  const Tensors dparams = grads.for_params();
  const Tensor dx = grads.for_examples(call.inputs), dy = grads.for_examples(y);
  by_dtype(value.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ConvLoss<R> args{call.net, pointers<const R>(call, call.params), examples<R>(call, call.inputs, y)};
    args.loss = value.data<R>();
    args.dparams = pointers<R>(call, dparams);
    args.grads = {dx.data<R>(), dy.data<R>()};
    py::gil_scoped_release release;
    cpu<R>().conv_loss(args);
  });
  return py::make_tuple(py::make_tuple(value.object()), grads.made());
}

py::tuple conv_loss_bwd(Handle cotangents, Handle saved, Handle params, Handle inputs, Handle targets, Handle blocks, Str loss,
                        Handle needs) {
  const ConvCall call("conv_loss", params, inputs, blocks, loss);
  py::object made = py::reinterpret_borrow<py::object>(saved);
  if (!py::len(made)) made = conv_loss_fwd(params, inputs, targets, blocks, loss, needs)[1];
  return Gradients(call, needs).finish(made, loss_cotangent(call, cotangents));
}

}  // namespace fastmeta
