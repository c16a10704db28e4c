#include "inner/conv_call.h"
#include "inner/mlp_call.h"

namespace fastmeta {

template <class Call>
py::tuple network_hvp_fwd(Handle params, Handle vectors, Handle inputs, Handle targets, Handle network, Str loss, Str curvature, Handle) {
  const Call call(Call::kOps.hvp, params, inputs, network, loss);
  const bool gauss_newton = read_choice(call.op, "curvature", curvature, {"hessian", "ggn"}) == 1;
  const TargetTensors y = call.targets(targets, "targets", call.count());
  const Tensors v = call.like_params(vectors, "vectors"), products = call.empty_params(computed_in(call.inputs));
  by_dtype(call.inputs.dtype(), [&](auto zero) {
    using R = decltype(zero);
    CurvatureCall<R, typename Call::Network> args{call.shape, pointers<const R>(call, call.params), pointers<const R>(call, v)};
    args.examples = examples<R>(call, call.inputs, y);
    args.dparams = pointers<R>(call, products);
    args.gauss_newton = gauss_newton;
    launch(call, args, kernels<R>(call).hvp);
  });
  return py::make_tuple(pack(call.rounded(products)), py::tuple());
}

#define INSTANTIATE(CALL) template py::tuple network_hvp_fwd<CALL>(Handle, Handle, Handle, Handle, Handle, Str, Str, Handle);
INSTANTIATE(MlpCall)
INSTANTIATE(ConvCall)

}  // namespace fastmeta
