#include "inner/conv_arguments.h"

namespace fastmeta {

py::tuple conv_hvp_fwd(Handle params, Handle vectors, Handle inputs, Handle targets, Handle blocks, Str loss, Str curvature, Handle) {
  const ConvCall call("conv_hvp", params, inputs, blocks, loss);
  const bool gauss_newton = read_choice(call.op, "curvature", curvature, {"hessian", "ggn"}) == 1;
  const Tensor y = call.targets(targets, "targets", call.count());
  const Tensors v = call.like_params(vectors, "vectors"), products = call.empty_params();
  by_dtype(call.inputs.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ConvCurvature<R> args{call.net, pointers<const R>(call, call.params), pointers<const R>(call, v)};
    args.examples = examples<R>(call, call.inputs, y);
    args.dparams = pointers<R>(call, products);
    args.gauss_newton = gauss_newton;
    py::gil_scoped_release release;
    cpu<R>().conv_hvp(args);
  });
  return py::make_tuple(pack(products), py::tuple());
}

}  // namespace fastmeta
