#include "runtime/cpu/kernels.h"
#include "ops.h"
#include "distance/proto_arguments.h"

namespace fastmeta {
namespace {

constexpr const char* kOp = "proto_log_softmax";

}  // namespace

py::tuple proto_log_softmax_fwd(Handle query, Handle prototypes, Handle temperature, Str metric, Handle needs) {
  const ProtoCall call(kOp, query, prototypes, temperature, metric);
  const Shape shape = call.task_shape({call.Q, call.N});
  const Tensor out = call.query.empty(shape);
  const Tensor distances = call.keeps(any(read_needs(kOp, needs, 3))) ? call.query.empty(shape) : Tensor();
  by_dtype(out.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ProtoLogSoftmax<R> p;
    call.describe<R>(p, true);
    p.log_probs = out.stored<R>();
    p.distances = distances.data<R>();
    run_kernel(call.pairs() * call.D, [&] { cpu<R>().proto_log_softmax_fwd(p); });
  });
  return py::make_tuple(pack({out}), pack({distances}));
}

py::tuple proto_log_softmax_bwd(Handle cotangents, Handle saved, Handle query, Handle prototypes, Handle temperature, Str metric,
                                Handle needs_) {
  const ProtoCall call(kOp, query, prototypes, temperature, metric);
  const std::vector<bool> needs = read_needs(kOp, needs_, 3);
  const Shape shape = call.task_shape({call.Q, call.N});
  const Tensor dlog_probs = call.cotangent(cotangents, shape);
  const Tensor distances = call.kept_distances(saved);
  const Tensor dquery = needs[0] ? call.query.empty(call.query.shape()) : Tensor();
  const Tensor dprototypes = needs[1] ? call.query.empty(call.prototypes.shape()) : Tensor();
  std::vector<double> dtemperature(needs[2] ? size_t(call.T) : 0);
  by_dtype(call.query.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ProtoLogSoftmax<R> p;
    call.describe<R>(p, true);
    p.kept_distances = distances.data<R>();
    p.dlog_probs = dlog_probs.stored<const R>();
    p.dquery = dquery.stored<R>();
    p.dprototypes = dprototypes.stored<R>();
    p.dtemperature = needs[2] ? dtemperature.data() : nullptr;
    run_kernel(call.pairs() * call.D, [&] { cpu<R>().proto_log_softmax_bwd(p); });
  });
  return pack({dquery, dprototypes, needs[2] ? sum_of(call.query, dtemperature) : Tensor()});
}

}  // namespace fastmeta
