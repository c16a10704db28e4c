#include <type_traits>

#include "inner/conv_call.h"
#include "inner/mlp_call.h"

namespace fastmeta {

template <class Call>
py::tuple network_forward_fwd(Handle params, Handle inputs, Handle network, Handle needs) {
  const Call call(Call::kOps.forward, params, inputs, network);
  if constexpr (std::is_same_v<Call, ConvCall>)
    if (!call.shape.outputs) return conv_features_fwd(call, needs);
  const Tensor& x = call.inputs;
  const Tensor out = x.empty(call.with_tasks({call.count(), call.outputs}));
  by_dtype(out.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ForwardCall<R, typename Call::Network> args{call.shape, call.count()};
    args.params = pointers<const R>(call, call.params);
    args.x = x.data<R>(), args.out = out.data<R>();
    launch(call, args, kernels<R>(call).forward_fwd);
  });
  return py::make_tuple(py::make_tuple(out.object()), py::tuple());
}

template <class Call>
py::tuple network_forward_bwd(Handle cotangents, Handle saved, Handle params, Handle inputs, Handle network, Handle needs) {
  const Call call(Call::kOps.forward, params, inputs, network);
  const Tensor& x = call.inputs;
  const Tensor dout = read_floating(call.op, "cotangent", py::tuple(py::reinterpret_borrow<py::object>(cotangents))[0], x.narrow());
  require_shape(call.op, "cotangent", dout, call.with_tasks({call.count(), call.outputs}));
  require_alike(call.op, {&call.inputs, &dout});
  if constexpr (std::is_same_v<Call, ConvCall>)
    if (!call.shape.outputs) return conv_features_bwd(call, dout, saved, needs);
  Gradients grads(call, needs);
  const Tensors dparams = grads.for_params();
  const Tensor dx = grads.for_examples(call.inputs);
  by_dtype(dout.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ForwardCall<R, typename Call::Network> args{call.shape, call.count()};
    args.params = pointers<const R>(call, call.params);
    args.x = x.data<R>(), args.dout = dout.data<R>();
    args.dparams = pointers<R>(call, dparams);
    args.dx = dx.data<R>();
    launch(call, args, kernels<R>(call).forward_bwd);
  });
  return grads.finish(grads.made(), Tensor());
}

#define INSTANTIATE(CALL)                                                       \
  template py::tuple network_forward_fwd<CALL>(Handle, Handle, Handle, Handle); \
  template py::tuple network_forward_bwd<CALL>(Handle, Handle, Handle, Handle, Handle, Handle);
INSTANTIATE(MlpCall)
INSTANTIATE(ConvCall)

}  // namespace fastmeta
