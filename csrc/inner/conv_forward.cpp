#include "inner/conv_arguments.h"

namespace fastmeta {

py::tuple conv_forward_fwd(Handle params, Handle inputs, Handle blocks, Handle) {
  const ConvCall call("conv_forward", params, inputs, blocks, "mse");
  const Tensor out = call.inputs.empty(call.with_tasks({call.count(), call.outputs}));
  by_dtype(out.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ConvForward<R> args{call.net, call.count()};
    args.params = pointers<const R>(call, call.params);
    args.x = call.inputs.data<R>(), args.out = out.data<R>();
    py::gil_scoped_release release;
    cpu<R>().conv_forward_fwd(args);
  });
  return py::make_tuple(py::make_tuple(out.object()), py::tuple());
}

py::tuple conv_forward_bwd(Handle cotangents, Handle, Handle params, Handle inputs, Handle blocks, Handle needs) {
  const ConvCall call("conv_forward", params, inputs, blocks, "mse");
  const Tensor dout = read_floating(call.op, "cotangent", py::tuple(py::reinterpret_borrow<py::object>(cotangents))[0]);
  require_shape(call.op, "cotangent", dout, call.with_tasks({call.count(), call.outputs}));
  require_alike(call.op, {&call.inputs, &dout});
  Gradients grads(call, needs);
  const Tensors dparams = grads.for_params();
  const Tensor dx = grads.for_examples(call.inputs);
  by_dtype(dout.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ConvForward<R> args{call.net, call.count()};
    args.params = pointers<const R>(call, call.params);
    args.x = call.inputs.data<R>(), args.dout = dout.data<R>();
    args.dparams = pointers<R>(call, dparams);
    args.dx = dx.data<R>();
    py::gil_scoped_release release;
    cpu<R>().conv_forward_bwd(args);
  });
  return grads.finish(grads.made(), Tensor());
}

}  // namespace fastmeta
