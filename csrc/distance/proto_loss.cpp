#include "ops.h"
#include "distance/proto_loss_call.h"

namespace fastmeta {
namespace {

// The examples of a task that a mean counts, at least 1.
int64_t Call::counted(int64_t task) const {
  if (soft_targets) return std::max<int64_t>(1, Q);
  const int64_t* begin = targets.data<int64_t>() + task * Q;
  return std::max<int64_t>(1, Q - std::count(begin, begin + Q, ignore_index));
}

// Memory for the gradients; `tasks`: of each task its own.
Gradients Call::room(bool tasks, Sums& sums) const {
  Gradients made;
  if (needs[0]) made.query = query.empty(query.shape());
  if (needs[1]) made.prototypes = prototypes.empty(tasks ? task_shape({N, D}) : prototypes.shape());
  if (needs[2] && soft_targets) made.soft_targets = soft_targets.empty(soft_targets.shape());
  if (needs[5] && target_distance) made.target_distance = target_distance.empty(target_distance.shape());
  sums.temperature.resize(needs[3] ? size_t(T) : 0), sums.bias.resize(needs[6] ? size_t(T * N) : 0);
  return made;
}

void Call::finish(Gradients& made, const Sums& sums, bool tasks) const {
  if (needs[3] && !tasks) made.temperature = sum_of(query, sums.temperature);
  if (needs[3] && tasks) write_numbers(made.temperature = query.empty({T}), sums.temperature.data());
  if (needs[6]) write_numbers(made.bias = query.empty(tasks ? task_shape({N}) : of_prototypes()), sums.bias.data());
}

template <class R>
void Call::write_hits(const Tensor& out, const std::vector<R>& hits) const {
  const bool none = reduction == Reduction::none;
  std::vector<double> found(none ? hits.size() : size_t(T));
  for (size_t i = 0; i < hits.size(); i++) found[none ? i : i / size_t(Q)] += double(hits[i]);
  for (size_t t = 0; t < found.size() && reduction == Reduction::mean; t++) found[t] /= double(counted(int64_t(t)));
  write_numbers(out, found.data());
}

void Call::run(bool folded, const std::vector<Tensor>& out, const Tensor& query_weight, const Gradients& made, Sums* sums) const {
  by_dtype(query.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ProtoLoss<R> p;
    Sums unused;
    const bool has_hits = !out.empty() && out[1];
    std::vector<R> hits(has_hits ? size_t(T * Q) : 0);
    describe<R>(p, folded);
    fill(p, target_distance.data<R>(), bias.data<R>(), sums ? *sums : unused, sums);
    (reduction == Reduction::none ? p.query_loss : p.task_loss) = out.empty() ? nullptr : out[0].data<R>();
    p.hits = has_hits ? hits.data() : nullptr;
    p.query_weight = query_weight.data<R>();
    p.dquery = made.query.stored<R>();
    p.dprototypes = made.prototypes.stored<R>();
    p.dsoft_targets = made.soft_targets.stored<R>();
    p.dtarget_distance = made.target_distance.data<R>();
    std::vector<double> weights(reduction == Reduction::none ? 0 : size_t(T), 1);
    if (reduction != Reduction::none) p.task_weight = weights.data();
    run_kernel(pairs() * D, [&] {
      for (int64_t t = 0; t < T && reduction == Reduction::mean; t++) weights[size_t(t)] = 1 / double(counted(t));
      cpu<R>().proto_loss(p);
    });
    if (has_hits) write_hits(out[1], hits);
  });
}

void Call::losses(const std::vector<Tensor>& out) const { run(reduction == Reduction::none, out, Tensor(), {}, nullptr); }

Gradients Call::unit_gradients(const std::vector<Tensor>& out) const {
  Sums sums;
  Gradients made = room(true, sums);
  run(false, out, Tensor(), made, &sums);
  finish(made, sums, true);
  return made;
}

Gradients Call::gradients(const Tensor& dloss) const {
  Sums sums;
  Gradients made = room(false, sums);
  run(true, {}, dloss, made, &sums);
  finish(made, sums, false);
  return made;
}

// A gradient for the cotangent 1 may vanish in float16, where a large cotangent saves it: so backward finds all of them anew.
Gradients Call::narrow(const std::vector<Tensor>& out, bool gradients, const Tensor& dloss) const {
  const size_t count = size_t(T * Q);
  const bool has_loss = !out.empty(), has_hits = has_loss && out[1];
  Sums sums;
  Gradients made = gradients ? room(false, sums) : Gradients();
  std::vector<float> each(has_loss ? count : 0), weights(gradients ? count : 0), hits(has_hits ? count : 0);
  std::vector<float> dtarget(made.target_distance ? count : 0), of_dloss, of_targets, of_bias;
  const float* cotangents = dloss ? numbers(dloss, of_dloss) : nullptr;
  ProtoLoss<float> p;
  describe<float>(p, true);
  fill(p, target_distance ? numbers(target_distance, of_targets) : nullptr, bias ? numbers(bias, of_bias) : nullptr, sums, gradients);
  p.dtarget_distance = made.target_distance ? dtarget.data() : nullptr;
  p.query_loss = has_loss ? each.data() : nullptr, p.hits = has_hits ? hits.data() : nullptr;
  p.query_weight = weights.data();
  p.dquery = made.query.stored<float>(), p.dprototypes = made.prototypes.stored<float>();
  p.dsoft_targets = made.soft_targets.stored<float>();
  const bool none = reduction == Reduction::none;
  std::vector<double> losses(none ? count : size_t(T)), scale(size_t(T), 1);
  run_kernel(pairs() * D, [&] {
    for (int64_t t = 0; t < T && reduction == Reduction::mean; t++) scale[size_t(t)] = 1 / double(counted(t));
    for (size_t i = 0; i < weights.size(); i++) {
      const size_t task = i / size_t(Q);
      weights[i] = float(scale[task]) * (cotangents ? cotangents[none ? i : task] : 1);
    }
    cpu<float>().proto_loss(p);
    for (size_t i = 0; i < each.size(); i++) losses[none ? i : i / size_t(Q)] += scale[i / size_t(Q)] * double(each[i]);
  });
  if (has_loss) write_numbers(out[0], losses.data());
  if (has_hits) write_hits(out[1], hits);
  if (made.target_distance) write_numbers(made.target_distance, std::vector<double>(dtarget.begin(), dtarget.end()).data());
  if (gradients) finish(made, sums, false);
  return made;
}

// The unit gradients (of those inputs that need one) times the cotangent of each task's loss, summed over the tasks that
// share an input.
py::tuple scaled(Handle unit, const std::vector<bool>& needs, const Tensor& dloss, int64_t T, bool shared) {
  const std::vector<Tensor> made = read_tensors(kOp, "saved", unit);
  const Wanted wanted(needs, shared);
  std::vector<bool> summed;
  for (size_t i = 0; i < wanted.marked.size() && summed.size() < made.size(); i++) {
    if (!wanted.marked[i]) continue;
    const Tensor& x = made[summed.size()];
    require_alike(kOp, {&dloss, &x});
    if (!x || x.dim() < 1 || ((wanted.summed[i] || dloss.dim()) && x.size(0) != T))
      throw py::value_error(std::string(kOp) + ": saved must hold the gradients of each task, got another shape");
    summed.push_back(wanted.summed[i]);
  }
  return of_tasks(kOp, made, summed, T, dloss);
}

py::tuple Call::gradients_of_sum(const std::vector<Tensor>& out, const Tensor& dloss) const {
  if (query.narrow()) return narrow(out, true, dloss).pack();
  if (reduction == Reduction::none) {
    losses(out);
    if (dloss) return gradients(dloss).pack();
    const Tensor ones = query.empty(loss_shape());
    by_dtype(query.dtype(), [&](auto zero) { std::fill_n(ones.data<decltype(zero)>(), ones.numel(), decltype(zero)(1)); });
    return gradients(ones).pack();
  }
  const Gradients unit = unit_gradients(out);
  std::vector<Tensor> made;
  std::vector<bool> summed;
  const Wanted wanted(needs, shared);
  const Tensor* const each[] = {&unit.query, &unit.prototypes, &unit.soft_targets, &unit.temperature, &unit.target_distance, &unit.bias};
  for (size_t i = 0; i < wanted.marked.size(); i++)
    if (*each[i]) made.push_back(*each[i]), summed.push_back(wanted.summed[i]);
  return of_tasks(kOp, made, summed, T, dloss);
}

}  // namespace

#define FASTMETA_ARGUMENTS                                                                                                  \
  Handle query, Handle prototypes, Handle targets, Handle temperature, Handle exclude, Handle target_distance, Handle bias, \
      Handle classes, Str metric, int64_t ignore_index, Str reduction, double margin, double smoothing, bool counts_hits, Handle needs
#define FASTMETA_GIVEN                                                                                                                  \
  query, prototypes, targets, temperature, exclude, target_distance, bias, classes, metric, ignore_index, reduction, margin, smoothing, \
      counts_hits, needs

py::tuple proto_loss_value_and_grad(FASTMETA_ARGUMENTS, Handle cotangents) {
  const Call call(FASTMETA_GIVEN);
  const std::vector<Tensor> out = call.outputs();
  const Tensor dloss = cotangents.is_none() ? Tensor() : call.cotangent(cotangents, call.loss_shape());
  return py::make_tuple(pack(out), call.gradients_of_sum(out, dloss));
}

py::tuple proto_loss_fwd(FASTMETA_ARGUMENTS) {
  const Call call(FASTMETA_GIVEN);
  const std::vector<Tensor> out = call.outputs();
  if (call.query.narrow()) {
    call.narrow(out, false, Tensor());
    return py::make_tuple(pack(out), py::tuple());
  }
  if (any(call.needs) && call.reduction != Reduction::none) return py::make_tuple(pack(out), call.unit_gradients(out).pack());
  call.losses(out);
  return py::make_tuple(pack(out), py::tuple());
}

py::tuple proto_loss_bwd(Handle cotangents, Handle saved, FASTMETA_ARGUMENTS) {
  if (!py::len(saved)) {
    const Call call(FASTMETA_GIVEN);
    const Tensor dloss = call.cotangent(cotangents, call.loss_shape());
    if (call.query.narrow()) return call.narrow({}, true, dloss).pack();
    if (call.reduction == Reduction::none) return call.gradients(dloss).pack();
    return scaled(call.unit_gradients({}).pack(), call.needs, dloss, call.T, call.shared);
  }
  const Tensor dloss = read_floating(kOp, "the cotangent", read_list(kOp, "cotangents", cotangents, counts_hits ? 2 : 1)[0]);
  require_cpu(kOp, {&dloss});
  const int64_t T = dloss.dim() ? dloss.size(0) : 1;
  const bool shared = dloss.dim() && py::cast<int64_t>(prototypes.attr("dim")()) == 2;
  return scaled(saved, read_needs_of_given(needs), dloss, T, shared);
}

}  // namespace fastmeta
