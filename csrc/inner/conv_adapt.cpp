#include "inner/conv_arguments.h"

namespace fastmeta {

py::tuple conv_adapt_fwd(Handle params, Handle rates, Handle inputs, Handle targets, int64_t steps, Handle blocks, Str loss, bool, Handle) {
  const ConvCall call("conv_adapt", params, inputs, blocks, loss);
  const Tensor y = call.targets(targets, "targets", call.count());
  const Tensors alpha = call.rates(rates, steps), adapted = call.empty_params();
  by_dtype(call.inputs.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ConvAdapt<R> args{call.net, steps, false, pointers<const R>(call, call.params)};
    set_rates(args.rates, alpha, alpha);
    args.support = examples<R>(call, call.inputs, y);
    args.adapted = pointers<R>(call, adapted);
    py::gil_scoped_release release;
    cpu<R>().conv_adapt_fwd(args);
  });
  return py::make_tuple(pack(adapted), py::tuple());
}

py::tuple conv_adapt_bwd(Handle cotangents, Handle, Handle params, Handle rates, Handle inputs, Handle targets, int64_t steps,
                         Handle blocks, Str loss, bool first_order, Handle needs) {
  const ConvCall call("conv_adapt", params, inputs, blocks, loss);
  const Tensor y = call.targets(targets, "targets", call.count());
  const Tensors alpha = call.rates(rates, steps), v = call.cotangents_of_params(cotangents);
  Gradients grads(call, needs, alpha);
  const Tensors dparams = grads.for_params(), dalpha = grads.for_rates();
  const Tensor dx = grads.for_examples(call.inputs), dy = grads.for_examples(y);
  by_dtype(call.inputs.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ConvAdapt<R> args{call.net, steps, first_order, pointers<const R>(call, call.params)};
    set_rates(args.rates, alpha, alpha);
    args.support = examples<R>(call, call.inputs, y);
    args.dadapted = pointers<const R>(call, v);
    args.dparams = pointers<R>(call, dparams);
    set_rates(args.drates, alpha, dalpha);
    args.support_grads = {dx.data<R>(), dy.data<R>()};
    py::gil_scoped_release release;
    cpu<R>().conv_adapt_bwd(args);
  });
  return grads.finish(grads.made(), Tensor());
}

}  // namespace fastmeta
