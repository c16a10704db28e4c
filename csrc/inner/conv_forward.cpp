// conv_forward without a linear layer: features, and the statistics of its batch norms.
#include <algorithm>

#include "inner/conv_call.h"
#include "runtime/warm.h"

namespace fastmeta {
namespace {

// Runs a kernel with its memory. `kept`: what forward keeps for backward; empty: made here where `keeps`.
template <class R>
Tensor run(const ConvCall& call, ConvFeatures<R>& args, Tensor kept, void (*kernel)(const ConvFeatures<R>&)) {
  ConvFeaturesSizes sizes;
  args.shape = call.shape, args.count = call.count(), args.params = pointers<const R>(call, call.params);
  args.x = call.inputs.data<R>(), args.sizes = &sizes;
  cpu<R>().conv_features_sizes(args);
  if (args.keeps && !kept) kept = warm_tensor(computed_in(call.inputs), call.tasks * sizes.kept);
  if (kept && kept.numel() != call.tasks * sizes.kept) throw py::value_error(std::string(call.op) + ": saved must be what forward kept");
  const Tensor work = warm_tensor(computed_in(call.inputs), sizes.work);
  args.kept = kept.data<R>(), args.work = work.data<R>();
  py::gil_scoped_release release;
  run_on_cpu(call.inputs, args, 1, kernel);
  return kept;
}

// Outputs: features [T?, n, F]; mean and variance [T?, channels of all batch norms], where there is one.
template <class R>
Tensor forward(const ConvCall& call, bool keeps, const Tensors& outputs) {
  ConvFeatures<R> args;
  args.keeps = keeps;
  args.out = outputs[0].data<R>(), args.mean = outputs[1].data<R>(), args.var = outputs[2].data<R>();
  return run(call, args, Tensor(), cpu<R>().conv_features_fwd);
}

Tensors outputs_of(const ConvCall& call) {
  int64_t channels = 0;
  for (int l = 0; l < call.shape.blocks; l++)
    if (call.shape.block[l].norm == ConvNorm::batch) channels += call.shape.block[l].out;
  const Shape shape = call.with_tasks({channels});
  Tensors found{call.inputs.empty(call.with_tasks({call.count(), call.outputs})), Tensor(), Tensor()};
  for (size_t i = 1; i < 3 && channels; i++) found[i] = call.inputs.empty(shape);
  return found;
}

}  // namespace

py::tuple conv_features_fwd(const ConvCall& call, Handle needs) {
  const std::vector<bool> needed = read_needs(needs);
  const bool keeps = std::find(needed.begin(), needed.end(), true) != needed.end();
  const Tensors outputs = outputs_of(call);
  Tensor kept;
  by_dtype(call.inputs.dtype(), [&](auto zero) { kept = forward<decltype(zero)>(call, keeps, outputs); });
  return py::make_tuple(pack(outputs), pack({kept}));
}

py::tuple conv_features_bwd(const ConvCall& call, const Tensor& dout, Handle saved, Handle needs) {
  const Tensors given = read_tensors(call.op, "saved", saved);
  Gradients grads(call, needs);
  const Tensors dparams = grads.for_params();
  const Tensor dx = grads.for_examples(call.inputs);
  by_dtype(dout.dtype(), [&](auto zero) {
    using R = decltype(zero);
    const Tensor kept = given.empty() ? forward<R>(call, true, outputs_of(call)) : given[0];
    ConvFeatures<R> args;
    args.keeps = true, args.dout = dout.data<R>(), args.dx = dx.data<R>(), args.dparams = pointers<R>(call, dparams);
    run(call, args, kept, cpu<R>().conv_features_bwd);
  });
  return grads.finish(grads.made(), Tensor());
}

}  // namespace fastmeta
