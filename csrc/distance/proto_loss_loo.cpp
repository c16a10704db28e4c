// The loss of examples against the means of their classes without themselves: the kernels of prototypes and proto_loss, between them
// the distances of cpu/proto_loss_loo.cpp.
#include "distance/proto.h"
#include "ops.h"
#include "runtime/arguments.h"
#include "runtime/cpu/kernels.h"

namespace fastmeta {
namespace {

constexpr const char* kOp = "proto_loss_loo";

class Call {
 public:
  Call(Handle embeddings, Handle labels_, Handle temperature_, int64_t num_classes, Str metric_, Str reduction_, Handle needs_)
      : x(read_floating(kOp, "embeddings", embeddings)),
        labels(read_int64(kOp, "labels", labels_)),
        temperature(read_number(kOp, "temperature", temperature_, x)),
        metric(read_enum<Metric>(kOp, "metric", metric_, {"euclidean", "sqeuclidean", "cosine"})),
        reduction(read_enum<Reduction>(kOp, "reduction", reduction_, {"mean", "sum", "none"})),
        needs(read_needs(kOp, needs_, 3)) {
    require_cpu(kOp, {&x, &labels});
    has_tasks = require_rank(kOp, "labels", labels, 1);
    T = has_tasks ? labels.size(0) : 1, S = labels.size(-1), N = num_classes, D = x.dim() ? x.size(-1) : 0;
    require_shape(kOp, "embeddings", x, with_tasks(has_tasks, T, {S, D}));
    if (!(temperature > 0 && temperature < INFINITY))
      throw py::value_error(std::string(kOp) + ": temperature must be positive and finite, got " + std::to_string(temperature));
    if (N < 1 || N > S) throw py::value_error(std::string(kOp) + ": every class must have two examples, got fewer");
    sort();
  }

  Shape loss_shape() const { return reduction == Reduction::none ? labels.shape() : with_tasks(has_tasks, T, {}); }

  // The losses, and, of those that are needed, the gradients of sum_q weight_q loss_q: dx, and of each task that of the temperature.
  // weight: of each example, or empty: those of the reduction.
  std::vector<Tensor> run(const Tensor& loss, bool gradients, const Tensor& weight) const {
    std::vector<Tensor> made(2);
    if (gradients && needs[0]) made[0] = x.empty(x.shape());
    if (gradients && needs[2]) made[1] = x.empty({T});
    by_dtype(x.dtype(), [&](auto zero) { run_as<decltype(zero)>(loss, made, weight); });
    return made;
  }

  Tensor x, labels;
  double temperature;
  Metric metric;
  Reduction reduction;
  std::vector<bool> needs;
  bool has_tasks;
  int64_t T, S, N, D;

 private:
  // Sorts the examples by class. ValueError where a class has no two examples, or a label is out of range.
  void sort() {
    start_.assign(size_t(T * (N + 1)), 0), members_.resize(size_t(T * S));
    for (int64_t t = 0; t < T; t++) {
      const int64_t* of_task = labels.data<int64_t>() + t * S;
      int64_t* start = start_.data() + t * (N + 1);
      for (int64_t s = 0; s < S; s++) {
        if (of_task[s] < 0 || of_task[s] >= N) throw py::value_error(std::string(kOp) + ": labels must be in range, got another");
        start[of_task[s]]++;
      }
      for (int64_t n = 0, sum = 0; n <= N; n++) {
        if (n < N && start[n] < 2) throw py::value_error(std::string(kOp) + ": every class must have two examples, got fewer");
        start[n] = sum += n < N ? start[n] : 0;
      }
      for (int64_t s = S; s-- > 0;) members_[size_t(t * S + --start[of_task[s]])] = s;
    }
  }

  template <class R>
  void run_as(const Tensor& loss, const std::vector<Tensor>& made, const Tensor& weight) const {
    const Tensor centres = x.empty({T, N, D}), dcentres = made[0] ? x.empty({T, N, D}) : Tensor();
    std::vector<R> given(size_t(T * S)), dgiven(made[0] ? size_t(T * S) : 0);
    std::vector<R> inverse(metric == Metric::cosine ? size_t(2 * T * S) : 0);
    std::vector<double> weights(size_t(T), reduction == Reduction::mean ? 1 / double(S) : 1), dtemperature(made[1] ? size_t(T) : 0);

    Prototypes<R> means{T, S, N, D, x.stored<const R>(), labels.data<int64_t>(), centres.stored<R>(), {}, {}};
    ProtoLossLoo<R> others{T,
                           S,
                           N,
                           D,
                           metric,
                           start_.data(),
                           members_.data(),
                           x.data<R>(),
                           centres.data<R>(),
                           inverse.data(),
                           given.data(),
                           dgiven.data(),
                           dcentres.data<R>(),
                           made[0].data<R>()};
    ProtoLoss<R> p;
    p.T = T, p.Q = S, p.N = N, p.D = D, p.metric = metric, p.temperature = temperature;
    p.query = x.stored<const R>(), p.prototypes = centres.stored<const R>(), p.prototypes_stride = N * D;
    p.dquery = made[0].stored<R>(), p.dprototypes = dcentres.stored<R>();
    p.dtemperature = made[1] ? dtemperature.data() : nullptr;
    p.ignore_index = -1, p.targets = labels.data<int64_t>();
    p.target_distance = given.data(), p.dtarget_distance = made[0] ? dgiven.data() : nullptr;
    p.query_weight = weight.data<R>(), p.task_weight = weight ? nullptr : weights.data();
    (reduction == Reduction::none ? p.query_loss : p.task_loss) = loss.data<R>();
    run_kernel(T * S * N * D, [&] {
      cpu<R>().prototypes_fwd(means);
      cpu<R>().proto_loss_loo_fwd(others);
      cpu<R>().proto_loss(p);
      if (made[0]) cpu<R>().proto_loss_loo_bwd(others);
    });
    std::copy(dtemperature.begin(), dtemperature.end(), made[1].data<R>());
  }

  std::vector<int64_t> start_, members_;
};

}  // namespace

py::tuple proto_loss_loo_fwd(Handle embeddings, Handle labels, Handle temperature, int64_t num_classes, Str metric, Str reduction,
                             Handle needs) {
  const Call call(embeddings, labels, temperature, num_classes, metric, reduction, needs);
  const Tensor loss = call.x.empty(call.loss_shape());
  return py::make_tuple(pack({loss}), pack(call.run(loss, any(call.needs) && call.reduction != Reduction::none, Tensor())));
}

py::tuple proto_loss_loo_bwd(Handle cotangents, Handle saved, Handle embeddings, Handle labels, Handle temperature, int64_t num_classes,
                             Str metric, Str reduction, Handle needs) {
  const Call call(embeddings, labels, temperature, num_classes, metric, reduction, needs);
  const Tensor dloss = read_floating(kOp, "the cotangent", read_list(kOp, "cotangents", cotangents, 1)[0]);
  require_alike(kOp, {&call.x, &dloss});
  require_shape(kOp, "the cotangent", dloss, call.loss_shape());
  const bool none = call.reduction == Reduction::none;
  std::vector<Tensor> unit = read_tensors(kOp, "saved", saved);
  if (unit.empty())
    for (const Tensor& made : call.run(Tensor(), true, none ? dloss : Tensor()))
      if (made) unit.push_back(made);
  std::vector<bool> summed;
  if (call.needs[0]) summed.push_back(false);
  if (call.needs[2]) summed.push_back(true);
  if (unit.size() != summed.size() || (call.needs[0] && unit[0].shape() != call.x.shape()))
    throw py::value_error(std::string(kOp) + ": saved must hold the gradients of each task, got others");
  return of_tasks(kOp, unit, summed, call.T, none ? Tensor() : dloss);
}

}  // namespace fastmeta
