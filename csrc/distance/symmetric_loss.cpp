// The loss of both sides: the kernel of proto_loss from keys to queries, which leaves its sums and, where they are no larger than four
// times the inputs, its distances, then from queries to keys with the gradients of both: three products of [B, B, D] in place of six, or
// four, where the distances are computed again.
#include "ops.h"
#include "distance/proto_arguments.h"
#include "runtime/cpu/kernels.h"

namespace fastmeta {
namespace {

constexpr const char* kOp = "symmetric_loss";

class Call : public ProtoCall {
 public:
  Call(Handle query, Handle keys, Handle temperature, Str metric, Handle needs_)
      : ProtoCall(kOp, query, keys, temperature, metric), needs(read_needs(kOp, needs_, 3)) {
    if (this->query.narrow()) throw py::type_error("symmetric_loss: query must be float32 or float64, got 16 bits");
    require_shape(kOp, "keys", prototypes, this->query.shape());
  }

  std::vector<bool> needs;

  Shape loss_shape() const { return task_shape({}); }
  // The losses, and where `gradients` those of each task's: dquery, dkeys and, [T], dtemperature.
  std::vector<Tensor> run(const Tensor& loss, bool gradients) const {
    std::vector<Tensor> made(3);
    for (size_t i = 0; i < 2 && gradients; i++)
      if (needs[i]) made[i] = query.empty(query.shape());
    if (gradients && needs[2]) made[2] = query.empty({T});
    by_dtype(query.dtype(), [&](auto zero) { run_as<decltype(zero)>(loss, made); });
    return made;
  }

 private:
  bool keeps() const { return Q <= 8 * D; }

  template <class R>
  void run_as(const Tensor& loss, const std::vector<Tensor>& made) const {
    std::vector<int64_t> own(size_t(T * Q));
    std::vector<R> nearest(own.size()), log_sum(own.size()), each(static_cast<size_t>(T)), others(each.size());
    std::vector<double> weights(each.size(), 0.5 / double(Q)), dtemperature(each.size());
    for (int64_t i = 0; i < T * Q; i++) own[size_t(i)] = i % Q;
    ProtoLoss<R> p;
    describe<R>(p, false);
    p.ignore_index = -1, p.targets = own.data(), p.task_weight = weights.data();
    ProtoLoss<R> back = p;
    std::swap(back.query, back.prototypes);
    const Tensor kept = keeps() ? query.empty(task_shape({N, Q})) : Tensor();
    back.distances = kept.data<R>(), p.kept_distances = kept.data<R>(), p.kept_by_prototypes = bool(kept);
    back.task_loss = others.data(), back.nearest = nearest.data(), back.log_sum = log_sum.data();
    p.task_loss = each.data(), p.others_nearest = nearest.data(), p.others_log_sum = log_sum.data();
    p.dquery = made[0].stored<R>(), p.dprototypes = made[1].stored<R>(), p.dtemperature = made[2] ? dtemperature.data() : nullptr;
    run_kernel(pairs() * D, [&] {
      cpu<R>().proto_loss(back);
      cpu<R>().proto_loss(p);
    });
    for (size_t t = 0; t < each.size() && loss; t++) loss.data<R>()[t] = each[t] + others[t];
    if (made[2]) write_numbers(made[2], dtemperature.data());
  }
};

}  // namespace

py::tuple symmetric_loss_fwd(Handle query, Handle keys, Handle temperature, Str metric, Handle needs) {
  const Call call(query, keys, temperature, metric, needs);
  const Tensor loss = call.query.empty(call.loss_shape());
  return py::make_tuple(pack({loss}), pack(call.run(loss, any(call.needs))));
}

py::tuple symmetric_loss_bwd(Handle cotangents, Handle saved, Handle query, Handle keys, Handle temperature, Str metric, Handle needs) {
  const Call call(query, keys, temperature, metric, needs);
  const Tensor dloss = call.cotangent(cotangents, call.loss_shape());
  std::vector<Tensor> unit = read_tensors(kOp, "saved", saved);
  if (unit.empty())
    for (const Tensor& made : call.run(Tensor(), true))
      if (made) unit.push_back(made);
  std::vector<bool> summed;
  for (size_t i = 0; i < 3; i++)
    if (call.needs[i]) summed.push_back(i == 2);
  if (unit.size() != summed.size()) throw py::value_error("symmetric_loss: saved must hold the gradients of each task, got others");
  for (size_t i = 0; i < unit.size(); i++) require_shape(kOp, "saved", unit[i], summed[i] ? Shape{call.T} : call.query.shape());
  return of_tasks(kOp, unit, summed, call.T, dloss);
}

}  // namespace fastmeta
