// What the Python-facing functions of proto_log_softmax, proto_loss and matching_log_probs share: query, prototypes (for
// matching the support), temperature and metric.
#pragma once
#include "runtime/arguments.h"
#include "distance/proto.h"

namespace fastmeta {

class ProtoCall {
 public:
  ProtoCall(const char* op, py::handle query, py::handle prototypes, py::handle temperature, const std::string& metric);

  const char* op;
  Tensor query, prototypes;
  double temperature;
  Metric metric;
  bool has_tasks, shared;  // shared: the prototypes lack the task axis that the query has
  int64_t T, Q, N, D;

  int64_t pairs() const { return T * Q * N; }
  Shape task_shape(Shape core) const { return with_tasks(has_tasks, T, std::move(core)); }
  // The cotangent of the op's first output, checked: others have no derivative.
  Tensor cotangent(py::handle cotangents, const Shape& shape) const;

  // Whether forward keeps the distances for a backward to come. Of 16 bits they would not do.
  bool keeps(bool gradients) const { return gradients && !query.narrow(); }
  // The distances [T, Q, N] that forward kept in `saved`, checked; empty where it kept none.
  Tensor kept_distances(py::handle saved) const;

  // The problem as the kernels see it. `folded`: prototypes that all tasks share make one task of all queries, so that
  // dprototypes and dtemperature are the tasks' sums.
  template <class R>
  void describe(ProtoProblem<R>& p, bool folded) const {
    const bool fold = folded && shared;
    p.T = fold ? 1 : T, p.Q = fold ? T * Q : Q, p.N = N, p.D = D;
    p.metric = metric, p.temperature = temperature;
    p.query = query.template stored<const R>(), p.prototypes = prototypes.template stored<const R>();
    p.prototypes_stride = shared ? 0 : N * D;
  }
};

// A new tensor of shape () with the dtype of `like`, holding the sum of `values` in order.
Tensor sum_of(const Tensor& like, const std::vector<double>& values);

}  // namespace fastmeta
