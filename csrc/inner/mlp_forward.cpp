#include "inner/mlp_arguments.h"
#include "ops.h"

namespace fastmeta {

py::tuple mlp_forward_fwd(Handle params, Handle inputs, Str activation, Handle) {
  MlpCall call("mlp_forward", params, inputs, activation, "mse");
  Tensor out = call.inputs.empty(call.with_tasks({call.count(), call.outputs}));
  by_dtype(out.dtype(), [&](auto zero) {
    using R = decltype(zero);
    MlpForward<R> args{call.shape, call.count(), pointers<const R>(call, call.params), call.inputs.data<R>(), out.data<R>(), nullptr,
                       {},         nullptr};
    launch(call, args, FASTMETA_KERNEL(mlp_forward_fwd));
  });
  return py::make_tuple(py::make_tuple(out.object()), py::tuple());
}

py::tuple mlp_forward_bwd(Handle cotangents, Handle, Handle params, Handle inputs, Str activation, Handle needs) {
  MlpCall call("mlp_forward", params, inputs, activation, "mse");
  Tensor dout = read_floating(call.op, "cotangent", py::tuple(py::reinterpret_borrow<py::object>(cotangents))[0]);
  require_shape(call.op, "cotangent", dout, call.with_tasks({call.count(), call.outputs}));
  require_alike(call.op, {&call.inputs, &dout});
  Gradients grads(call, needs);
  Tensors dparams = grads.for_params();
  Tensor dx = grads.for_examples(call.inputs);
  by_dtype(dout.dtype(), [&](auto zero) {
    using R = decltype(zero);
    MlpForward<R> args{call.shape, call.count(),   pointers<const R>(call, call.params), call.inputs.data<R>(),
                       nullptr,    dout.data<R>(), pointers<R>(call, dparams),           dx.data<R>()};
    launch(call, args, FASTMETA_KERNEL(mlp_forward_bwd));
  });
  return grads.finish(grads.made(), Tensor());
}

}  // namespace fastmeta
