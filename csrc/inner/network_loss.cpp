#include "inner/conv_call.h"
#include "inner/mlp_call.h"

namespace fastmeta {
namespace {

// The losses; and into `grads` each task's gradients that are asked for.
template <class Call>
Tensor losses(const Call& call, Handle targets, Gradients& grads) {
  const TargetTensors y = call.targets(targets, "targets", call.count());
  const Tensor value = call.inputs.empty(call.with_tasks({}));
  const Tensors dparams = grads.for_params();
  const Tensor dx = grads.for_examples(call.inputs);
  const TargetTensors dy = grads.for_targets(y);
  by_dtype(value.dtype(), [&](auto zero) {
    using R = decltype(zero);
    LossCall<R, typename Call::Network> args{call.shape, pointers<const R>(call, call.params), examples<R>(call, call.inputs, y)};
    args.loss = value.data<R>();
    args.dparams = pointers<R>(call, dparams);
    args.grads = example_grads<R>(dx, dy);
    launch(call, args, kernels<R>(call).loss);
  });
  return value;
}

}  // namespace

template <class Call>
py::tuple network_loss_fwd(Handle params, Handle inputs, Handle targets, Handle network, Str loss, Handle needs) {
  const Call call(Call::kOps.loss, params, inputs, network, loss);
  Gradients grads(call, needs);
  const Tensor value = losses(call, targets, grads);
  return py::make_tuple(py::make_tuple(value.object()), grads.made());
}

template <class Call>
py::tuple network_loss_value_and_grad(Handle params, Handle inputs, Handle targets, Handle network, Str loss, Handle needs,
                                      Handle cotangents) {
  const Call call(Call::kOps.loss, params, inputs, network, loss);
  Gradients grads(call, needs);
  const Tensor value = losses(call, targets, grads);
  return py::make_tuple(py::make_tuple(value.object()),
                        grads.finish(grads.made(), cotangents.is_none() ? Tensor() : loss_cotangent(call, cotangents)));
}

template <class Call>
py::tuple network_loss_bwd(Handle cotangents, Handle saved, Handle params, Handle inputs, Handle targets, Handle network, Str loss,
                           Handle needs) {
  const Call call(Call::kOps.loss, params, inputs, network, loss);
  py::object made = py::reinterpret_borrow<py::object>(saved);
  if (!py::len(made)) made = network_loss_fwd<Call>(params, inputs, targets, network, loss, needs)[1];
  return Gradients(call, needs).finish(made, loss_cotangent(call, cotangents));
}

#define INSTANTIATE(CALL)                                                                                 \
  template py::tuple network_loss_fwd<CALL>(Handle, Handle, Handle, Handle, Str, Handle);                 \
  template py::tuple network_loss_bwd<CALL>(Handle, Handle, Handle, Handle, Handle, Handle, Str, Handle); \
  template py::tuple network_loss_value_and_grad<CALL>(Handle, Handle, Handle, Handle, Str, Handle, Handle);
INSTANTIATE(MlpCall)
INSTANTIATE(ConvCall)

}  // namespace fastmeta
