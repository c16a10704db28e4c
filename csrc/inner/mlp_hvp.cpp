#include "inner/mlp_arguments.h"
#include "ops.h"

namespace fastmeta {

py::tuple mlp_hvp_fwd(Handle params, Handle vectors, Handle inputs, Handle targets, Str activation, Str loss, Str curvature, Handle) {
  MlpCall call("mlp_hvp", params, inputs, activation, loss);
  const bool gauss_newton = read_choice(call.op, "curvature", curvature, {"hessian", "ggn"}) == 1;
  Tensor y = call.targets(targets, "targets", call.count());
  Tensors v = call.like_params(vectors, "vectors"), products = call.empty_params();
  by_dtype(call.inputs.dtype(), [&](auto zero) {
    using R = decltype(zero);
    MlpCurvature<R> args{call.shape,
                         pointers<const R>(call, call.params),
                         pointers<const R>(call, v),
                         examples<R>(call, call.inputs, y),
                         nullptr,
                         pointers<R>(call, products),
                         {},
                         gauss_newton};
    launch(call, args, FASTMETA_KERNEL(mlp_hvp));
  });
  return py::make_tuple(pack(products), py::tuple());
}

}  // namespace fastmeta
