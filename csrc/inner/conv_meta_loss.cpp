#include "inner/conv_arguments.h"

namespace fastmeta {

py::tuple conv_meta_loss_fwd(Handle params, Handle rates, Handle support_x, Handle support_y, Handle query_x, Handle query_y, int64_t steps,
                             Handle blocks, Str loss, bool first_order, Handle needs) {
  const ConvCall call("conv_meta_loss", params, support_x, blocks, loss);
  const Tensors alpha = call.rates(rates, steps);
  const Tensor qx = call.examples(query_x, "query_x"), value = call.inputs.empty(call.with_tasks({}));
  const Tensor sy = call.targets(support_y, "support_y", call.count()), qy = call.targets(query_y, "query_y", call.count_of(qx));
  call.require_statistics(call.count_of(qx));
  Gradients grads(call, needs, alpha);
  const Tensors dparams = grads.for_params(), dalpha = grads.for_rates();
  const Tensor dsx = grads.for_examples(call.inputs), dsy = grads.for_examples(sy);
  const Tensor dqx = grads.for_examples(qx), dqy = grads.for_examples(qy);
  by_dtype(value.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ConvMetaLoss<R> args{call.net, steps, first_order, grads.any(), pointers<const R>(call, call.params)};
    set_rates(args.rates, alpha, alpha);
    args.support = examples<R>(call, call.inputs, sy);
    args.query = examples<R>(call, qx, qy);
    args.loss = value.data<R>();
    args.dparams = pointers<R>(call, dparams);
    set_rates(args.drates, alpha, dalpha);
    args.support_grads = {dsx.data<R>(), dsy.data<R>()};
    args.query_grads = {dqx.data<R>(), dqy.data<R>()};
    py::gil_scoped_release release;
    cpu<R>().conv_meta_loss(args);
  });
  return py::make_tuple(py::make_tuple(value.object()), grads.made());
}

py::tuple conv_meta_loss_bwd(Handle cotangents, Handle saved, Handle params, Handle rates, Handle support_x, Handle support_y,
                             Handle query_x, Handle query_y, int64_t steps, Handle blocks, Str loss, bool first_order, Handle needs) {
  const ConvCall call("conv_meta_loss", params, support_x, blocks, loss);
  py::object made = py::reinterpret_borrow<py::object>(saved);
  if (!py::len(made))
    made = conv_meta_loss_fwd(params, rates, support_x, support_y, query_x, query_y, steps, blocks, loss, first_order, needs)[1];
  return Gradients(call, needs, call.rates(rates, steps, false)).finish(made, loss_cotangent(call, cotangents));
}

}  // namespace fastmeta
