#include <array>

#include "runtime/cpu/kernels.h"
#include "ops.h"
#include "distance/proto_arguments.h"

namespace fastmeta {
namespace {

constexpr const char* kOp = "proto_loss";
constexpr size_t kInputs = 6;

struct Gradients {
  Tensor query, prototypes, temperature, target_distance;

  py::tuple pack() const { return fastmeta::pack({query, prototypes, temperature, target_distance}); }
};

// Those of the inputs that have a gradient which needs one, and whether it is summed over the tasks where these share the prototypes.
struct Wanted {
  std::array<bool, 4> marked, summed;

  Wanted(const std::vector<bool>& needs, bool shared)
      : marked{needs[0], needs[1], needs[3], needs[5]}, summed{false, shared, true, false} {}
};

class Call : public ProtoCall {
 public:
  Call(Handle query, Handle prototypes, Handle targets_, Handle temperature, Handle exclude_, Handle target_distance_, Str metric,
       int64_t ignore_index, Str reduction_, double margin, Handle needs_)
      : ProtoCall(kOp, query, prototypes, temperature, metric),
        targets(read_int64(kOp, "targets", targets_)),
        ignore_index(ignore_index),
        margin(margin),
        reduction(read_enum<Reduction>(kOp, "reduction", reduction_, {"mean", "sum", "none"})),
        needs(read_needs(kOp, needs_, kInputs)) {
    require_cpu(kOp, {&targets});
    require_shape(kOp, "targets", targets, task_shape({Q}));
    if (!exclude_.is_none()) {
      exclude = read_int64(kOp, "exclude", exclude_);
      require_cpu(kOp, {&exclude});
      require_shape(kOp, "exclude", exclude, task_shape({Q}));
    }
    if (target_distance_.is_none()) return;
    target_distance = read_floating(kOp, "target_distance", target_distance_, true);
    require_alike(kOp, {&this->query, &target_distance});
    require_shape(kOp, "target_distance", target_distance, task_shape({Q}));
  }

  Tensor targets, exclude, target_distance;
  int64_t ignore_index;
  double margin;
  Reduction reduction;
  std::vector<bool> needs;

  Shape loss_shape() const { return reduction == Reduction::none ? targets.shape() : task_shape({}); }
  // For reductions "mean" and "sum": of each task's loss, with cotangent 1; prototypes [T, N, D], temperature [T].
  Gradients unit_gradients(const Tensor& loss) const;
  // Of the sum of all losses, each times its cotangent where these are given.
  py::tuple gradients_of_sum(const Tensor& loss, const Tensor& dloss) const;
  // For reduction "none", with the cotangent of each query's loss.
  Gradients gradients(const Tensor& dloss) const;
  void losses(const Tensor& loss) const;
  // Of 16 bits, for any reduction: the losses, unless `loss` is empty, and where `gradients`, those of their sum, each times its cotangent
  // (empty: 1).
  Gradients narrow(const Tensor& loss, bool gradients, const Tensor& dloss) const;

 private:
  int64_t counted(int64_t task) const;
  template <class R>
  void fill(ProtoLoss<R>& p, const R* distances) const {
    p.ignore_index = ignore_index, p.margin = margin;
    p.targets = targets.data<int64_t>(), p.exclude = exclude.data<int64_t>();
    p.target_distance = distances;
  }
  // Runs the kernel for whatever is not empty; dtemperature gets one value a task.
  void run(bool folded, const Tensor& loss, const Tensor& query_weight, const Gradients& made, std::vector<double>* dtemperature) const;
};

// The examples of a task that a mean counts, at least 1.
int64_t Call::counted(int64_t task) const {
  const int64_t* begin = targets.data<int64_t>() + task * Q;
  return std::max<int64_t>(1, Q - std::count(begin, begin + Q, ignore_index));
}

void Call::run(bool folded, const Tensor& loss, const Tensor& query_weight, const Gradients& made,
               std::vector<double>* dtemperature) const {
  by_dtype(query.dtype(), [&](auto zero) {
    using R = decltype(zero);
    ProtoLoss<R> p;
    describe<R>(p, folded);
    fill(p, target_distance.data<R>());
    (reduction == Reduction::none ? p.query_loss : p.task_loss) = loss.data<R>();
    p.query_weight = query_weight.data<R>();
    p.dquery = made.query.stored<R>();
    p.dprototypes = made.prototypes.stored<R>();
    p.dtarget_distance = made.target_distance.data<R>();
    p.dtemperature = dtemperature ? dtemperature->data() : nullptr;
    std::vector<double> weights(reduction == Reduction::none ? 0 : size_t(T), 1);
    if (reduction != Reduction::none) p.task_weight = weights.data();
    run_kernel(pairs() * D, [&] {
      for (int64_t t = 0; t < T && reduction == Reduction::mean; t++) weights[size_t(t)] = 1 / double(counted(t));
      cpu<R>().proto_loss(p);
    });
  });
}

void Call::losses(const Tensor& loss) const { run(reduction == Reduction::none, loss, Tensor(), {}, nullptr); }

Gradients Call::unit_gradients(const Tensor& loss) const {
  Gradients made;
  if (needs[0]) made.query = query.empty(query.shape());
  if (needs[1]) made.prototypes = prototypes.empty(task_shape({N, D}));
  if (needs[5]) made.target_distance = query.empty(targets.shape());
  std::vector<double> dtemperature(size_t(needs[3] ? T : 0));
  run(false, loss, Tensor(), made, needs[3] ? &dtemperature : nullptr);
  if (!needs[3]) return made;
  made.temperature = query.empty({T});
  by_dtype(query.dtype(), [&](auto zero) { std::copy(dtemperature.begin(), dtemperature.end(), made.temperature.data<decltype(zero)>()); });
  return made;
}

Gradients Call::gradients(const Tensor& dloss) const {
  Gradients made;
  if (needs[0]) made.query = query.empty(query.shape());
  if (needs[1]) made.prototypes = prototypes.empty(prototypes.shape());
  if (needs[5]) made.target_distance = query.empty(targets.shape());
  std::vector<double> dtemperature(size_t(needs[3] ? T : 0));
  run(true, Tensor(), dloss, made, needs[3] ? &dtemperature : nullptr);
  if (needs[3]) made.temperature = sum_of(query, dtemperature);
  return made;
}

// A gradient for the cotangent 1 may vanish in float16, where a large cotangent saves it: so backward finds all of them anew.
Gradients Call::narrow(const Tensor& loss, bool gradients, const Tensor& dloss) const {
  const size_t count = size_t(T * Q);
  const bool of_temperature = gradients && needs[3];
  Gradients made;
  if (gradients && needs[0]) made.query = query.empty(query.shape());
  if (gradients && needs[1]) made.prototypes = prototypes.empty(prototypes.shape());
  if (gradients && needs[5]) made.target_distance = query.empty(targets.shape());
  std::vector<double> dtemperature(size_t(of_temperature ? T : 0));
  std::vector<float> each(loss ? count : 0), weights(gradients ? count : 0), room, target_room;
  std::vector<float> dtarget(made.target_distance ? count : 0);
  const float* cotangents = dloss ? numbers(dloss, room) : nullptr;
  ProtoLoss<float> p;
  describe<float>(p, true);
  fill(p, target_distance ? numbers(target_distance, target_room) : nullptr);
  p.dtarget_distance = made.target_distance ? dtarget.data() : nullptr;
  p.query_loss = loss ? each.data() : nullptr;
  p.query_weight = weights.data();
  p.dquery = made.query.stored<float>(), p.dprototypes = made.prototypes.stored<float>();
  p.dtemperature = of_temperature ? dtemperature.data() : nullptr;
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
  if (loss) write_numbers(loss, losses.data());
  if (made.target_distance) write_numbers(made.target_distance, std::vector<double>(dtarget.begin(), dtarget.end()).data());
  if (of_temperature) made.temperature = sum_of(query, dtemperature);
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

py::tuple Call::gradients_of_sum(const Tensor& loss, const Tensor& dloss) const {
  if (query.narrow()) return narrow(loss, true, dloss).pack();
  if (reduction == Reduction::none) {
    losses(loss);
    if (dloss) return gradients(dloss).pack();
    const Tensor ones = query.empty(loss_shape());
    by_dtype(query.dtype(), [&](auto zero) { std::fill_n(ones.data<decltype(zero)>(), ones.numel(), decltype(zero)(1)); });
    return gradients(ones).pack();
  }
  const Gradients unit = unit_gradients(loss);
  std::vector<Tensor> made;
  std::vector<bool> summed;
  const Wanted wanted(needs, shared);
  const Tensor* const each[] = {&unit.query, &unit.prototypes, &unit.temperature, &unit.target_distance};
  for (size_t i = 0; i < wanted.marked.size(); i++)
    if (*each[i]) made.push_back(*each[i]), summed.push_back(wanted.summed[i]);
  return of_tasks(kOp, made, summed, T, dloss);
}

}  // namespace

py::tuple proto_loss_value_and_grad(Handle query, Handle prototypes, Handle targets, Handle temperature, Handle exclude,
                                    Handle target_distance, Str metric, int64_t ignore_index, Str reduction, double margin, Handle needs,
                                    Handle cotangents) {
  const Call call(query, prototypes, targets, temperature, exclude, target_distance, metric, ignore_index, reduction, margin, needs);
  const Tensor loss = call.query.empty(call.loss_shape());
  const Tensor dloss = cotangents.is_none() ? Tensor() : call.cotangent(cotangents, call.loss_shape());
  return py::make_tuple(pack({loss}), call.gradients_of_sum(loss, dloss));
}

py::tuple proto_loss_fwd(Handle query, Handle prototypes, Handle targets, Handle temperature, Handle exclude, Handle target_distance,
                         Str metric, int64_t ignore_index, Str reduction, double margin, Handle needs) {
  const Call call(query, prototypes, targets, temperature, exclude, target_distance, metric, ignore_index, reduction, margin, needs);
  const Tensor loss = call.query.empty(call.loss_shape());
  if (call.query.narrow()) {
    call.narrow(loss, false, Tensor());
    return py::make_tuple(pack({loss}), py::tuple());
  }
  if (any(call.needs) && call.reduction != Reduction::none) return py::make_tuple(pack({loss}), call.unit_gradients(loss).pack());
  call.losses(loss);
  return py::make_tuple(pack({loss}), py::tuple());
}

py::tuple proto_loss_bwd(Handle cotangents, Handle saved, Handle query, Handle prototypes, Handle targets, Handle temperature,
                         Handle exclude, Handle target_distance, Str metric, int64_t ignore_index, Str reduction, double margin,
                         Handle needs) {
  if (!py::len(saved)) {
    const Call call(query, prototypes, targets, temperature, exclude, target_distance, metric, ignore_index, reduction, margin, needs);
    const Tensor dloss = call.cotangent(cotangents, call.loss_shape());
    if (call.query.narrow()) return call.narrow(Tensor(), true, dloss).pack();
    if (call.reduction == Reduction::none) return call.gradients(dloss).pack();
    return scaled(call.unit_gradients(Tensor()).pack(), call.needs, dloss, call.T, call.shared);
  }
  const Tensor dloss = read_floating(kOp, "the cotangent", read_list(kOp, "cotangents", cotangents, 1)[0]);
  require_cpu(kOp, {&dloss});
  const int64_t T = dloss.dim() ? dloss.size(0) : 1;
  const bool shared = dloss.dim() && py::cast<int64_t>(prototypes.attr("dim")()) == 2;
  return scaled(saved, read_needs(kOp, needs, kInputs), dloss, T, shared);
}

}  // namespace fastmeta
