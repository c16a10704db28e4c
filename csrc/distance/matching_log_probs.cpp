#include "runtime/cpu/kernels.h"
#include "ops.h"
#include "distance/proto_arguments.h"

namespace fastmeta {
namespace {

constexpr const char* kOp = "matching_log_probs";

class Call : public ProtoCall {
 public:
  Call(Handle query, Handle support, Handle labels_, Handle temperature, int64_t num_classes, Str metric)
      : ProtoCall(kOp, query, support, temperature, metric), labels(read_int64(kOp, "labels", labels_)), ways(num_classes) {
    require_cpu(kOp, {&labels});
    require_shape(kOp, "labels", labels, shared ? Shape{N} : task_shape({N}));
    if (ways < 1) throw py::value_error("matching_log_probs: num_classes must be at least 1, got " + std::to_string(ways));
    if (T && ways > N) throw py::value_error("matching_log_probs: every class must have a support example, got more classes than examples");
  }

  template <class R>
  MatchingLogProbs<R> problem() const {
    MatchingLogProbs<R> p;
    describe<R>(p, true);
    p.ways = ways, p.labels = labels.data<int64_t>();
    return p;
  }

  Tensor labels;
  int64_t ways;
};

}  // namespace

py::tuple matching_log_probs_fwd(Handle query, Handle support, Handle labels, Handle temperature, int64_t num_classes, Str metric,
                                 Handle needs) {
  const Call call(query, support, labels, temperature, num_classes, metric);
  const Tensor out = call.query.empty(call.task_shape({call.Q, call.ways}));
  const Tensor distances = call.keeps(any(read_needs(kOp, needs, 4))) ? call.query.empty(call.task_shape({call.Q, call.N})) : Tensor();
  by_dtype(out.dtype(), [&](auto zero) {
    using R = decltype(zero);
    MatchingLogProbs<R> p = call.problem<R>();
    p.log_probs = out.stored<R>();
    p.distances = distances.data<R>();
    run_kernel(call.pairs() * call.D, [&] { cpu<R>().matching_log_probs_fwd(p); });
  });
  return py::make_tuple(pack({out}), pack({distances}));
}

py::tuple matching_log_probs_bwd(Handle cotangents, Handle saved, Handle query, Handle support, Handle labels, Handle temperature,
                                 int64_t num_classes, Str metric, Handle needs_) {
  const Call call(query, support, labels, temperature, num_classes, metric);
  const std::vector<bool> needs = read_needs(kOp, needs_, 4);
  const Tensor dlog_probs = call.cotangent(cotangents, call.task_shape({call.Q, call.ways}));
  const Tensor distances = call.kept_distances(saved);
  const Tensor dquery = needs[0] ? call.query.empty(call.query.shape()) : Tensor();
  const Tensor dsupport = needs[1] ? call.query.empty(call.prototypes.shape()) : Tensor();
  std::vector<double> dtemperature(needs[3] ? size_t(call.T) : 0);
  by_dtype(call.query.dtype(), [&](auto zero) {
    using R = decltype(zero);
    MatchingLogProbs<R> p = call.problem<R>();
    p.dlog_probs = dlog_probs.stored<const R>();
    p.kept_distances = distances.data<R>();
    p.dquery = dquery.stored<R>();
    p.dprototypes = dsupport.stored<R>();
    p.dtemperature = needs[3] ? dtemperature.data() : nullptr;
    run_kernel(call.pairs() * call.D, [&] { cpu<R>().matching_log_probs_bwd(p); });
  });
  return pack({dquery, dsupport, needs[3] ? sum_of(call.query, dtemperature) : Tensor()});
}

}  // namespace fastmeta
