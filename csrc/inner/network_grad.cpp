#include "inner/conv_call.h"
#include "inner/mlp_call.h"

namespace fastmeta {

template <class Call>
py::tuple network_grad_fwd(Handle params, Handle inputs, Handle targets, Handle network, Str loss, Handle) {
  const Call call(Call::kOps.grad, params, inputs, network, loss);
  const TargetTensors y = call.targets(targets, "targets", call.count());
  const Tensor value = call.inputs.empty(call.with_tasks({}));
  Tensors grads = call.empty_params(computed_in(call.inputs));
  by_dtype(value.dtype(), [&](auto zero) {
    using R = decltype(zero);
    LossCall<R, typename Call::Network> args{call.shape, pointers<const R>(call, call.params), examples<R>(call, call.inputs, y)};
    args.loss = value.data<R>();
    args.dparams = pointers<R>(call, grads);
    launch(call, args, kernels<R>(call).loss);
  });
  grads = call.rounded(grads);
  grads.insert(grads.begin(), value);
  return py::make_tuple(pack(grads), py::tuple());
}

template <class Call>
py::tuple network_grad_bwd(Handle cotangents, Handle, Handle params, Handle inputs, Handle targets, Handle network, Str loss,
                           Handle needs) {
  const Call call(Call::kOps.grad, params, inputs, network, loss);
  const TargetTensors y = call.targets(targets, "targets", call.count());
  const Tensor dloss = loss_cotangent(call, cotangents);
  const Tensors vectors = call.cotangents_of_params(cotangents, 1);
  Gradients grads(call, needs);
  const Tensors dparams = grads.for_params();
  const Tensor dx = grads.for_examples(call.inputs);
  const TargetTensors dy = grads.for_targets(y);
  by_dtype(dloss.dtype(), [&](auto zero) {
    using R = decltype(zero);
    CurvatureCall<R, typename Call::Network> args{call.shape, pointers<const R>(call, call.params), pointers<const R>(call, vectors)};
    args.examples = examples<R>(call, call.inputs, y);
    args.dloss = dloss.data<R>();
    args.dparams = pointers<R>(call, dparams);
    args.grads = example_grads<R>(dx, dy);
    launch(call, args, kernels<R>(call).hvp);
  });
  return grads.finish(grads.made(), Tensor());
}

#define INSTANTIATE(CALL)                                                                 \
  template py::tuple network_grad_fwd<CALL>(Handle, Handle, Handle, Handle, Str, Handle); \
  template py::tuple network_grad_bwd<CALL>(Handle, Handle, Handle, Handle, Handle, Handle, Str, Handle);
INSTANTIATE(MlpCall)
INSTANTIATE(ConvCall)

}  // namespace fastmeta
