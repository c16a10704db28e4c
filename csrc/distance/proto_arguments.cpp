#include "distance/proto_arguments.h"

#include <cmath>

namespace fastmeta {

ProtoCall::ProtoCall(const char* op, py::handle query_, py::handle prototypes_, py::handle temperature_, const std::string& metric_)
    : op(op),
      query(read_floating(op, "query", query_, true)),
      prototypes(read_floating(op, "prototypes", prototypes_, true)),
      temperature(read_number(op, "temperature", temperature_, query)),
      metric(read_enum<Metric>(op, "metric", metric_, {"euclidean", "sqeuclidean", "cosine"})) {
  require_cpu(op, {&query, &prototypes});
  require_alike(op, {&query, &prototypes});
  has_tasks = require_rank(op, "query", query, 2);
  shared = has_tasks && prototypes.dim() == 2;
  T = has_tasks ? query.size(0) : 1, Q = query.size(-2), D = query.size(-1);
  N = prototypes.dim() >= 2 ? prototypes.size(-2) : 0;
  if (N == 0) throw py::value_error(std::string(op) + ": prototypes must hold at least one class, got none");
  if (!(temperature > 0 && temperature < INFINITY))
    throw py::value_error(std::string(op) + ": temperature must be positive and finite, got " + std::to_string(temperature));
  require_shape(op, "prototypes", prototypes, shared ? Shape{N, D} : task_shape({N, D}));
}

Tensor ProtoCall::cotangent(py::handle cotangents, const Shape& shape) const {
  const std::vector<py::object> each = read_list(op, "cotangents", cotangents);
  if (each.empty()) throw py::value_error(std::string(op) + ": cotangents must hold that of the op's first output, got none");
  Tensor found = read_floating(op, "the cotangent", each[0], true);
  require_alike(op, {&query, &found});
  require_shape(op, "the cotangent", found, shape);
  return found;
}

Tensor ProtoCall::kept_distances(py::handle saved) const {
  const auto kept = read_list(op, "saved", saved);
  if (kept.empty()) return Tensor();
  Tensor found = read_floating(op, "saved", kept[0]);
  require_alike(op, {&query, &found});
  require_shape(op, "saved", found, task_shape({Q, N}));
  return found;
}

Tensor sum_of(const Tensor& like, const std::vector<double>& values) {
  Tensor out = like.empty({});
  double sum = 0;
  for (double value : values) sum += value;
  write_numbers(out, &sum);
  return out;
}

}  // namespace fastmeta
