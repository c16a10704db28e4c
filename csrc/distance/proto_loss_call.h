// The arguments of proto_loss as Python gives them, and its kernel's runs with them.
#pragma once
#include <array>

#include "runtime/cpu/kernels.h"
#include "distance/proto_arguments.h"

namespace fastmeta {
namespace {

constexpr const char* kOp = "proto_loss";
constexpr size_t kInputs = 8, kLeast = 4;

// Optional inputs after the last that is given have no entry.
std::vector<bool> read_needs_of_given(Handle handle) {
  std::vector<bool> needs = read_needs(handle);
  if (needs.size() < kLeast || needs.size() > kInputs)
    throw py::value_error("proto_loss: needs must have 4 to 8 entries, got " + std::to_string(needs.size()));
  needs.resize(kInputs);
  return needs;
}

struct Gradients {
  Tensor query, prototypes, soft_targets, temperature, target_distance, bias;

  py::tuple pack() const { return fastmeta::pack({query, prototypes, soft_targets, temperature, target_distance, bias}); }
};

// Those of the inputs that have a gradient which needs one, and whether it is summed over the tasks where these share the prototypes.
struct Wanted {
  std::array<bool, 6> marked, summed;

  Wanted(const std::vector<bool>& needs, bool shared)
      : marked{needs[0], needs[1], needs[2], needs[3], needs[5], needs[6]}, summed{false, shared, false, true, false, shared} {}
};

class Call : public ProtoCall {
 public:
  Call(Handle query, Handle prototypes, Handle targets_, Handle temperature, Handle exclude_, Handle target_distance_, Handle bias_,
       Handle classes_, Str metric, int64_t ignore_index, Str reduction_, double margin, double smoothing, bool counts_hits, Handle needs_)
      : ProtoCall(kOp, query, prototypes, temperature, metric),
        targets(kOp, targets_, "targets"),
        ignore_index(ignore_index),
        margin(margin),
        smoothing(smoothing),
        counts_hits(counts_hits),
        reduction(read_enum<Reduction>(kOp, "reduction", reduction_, {"mean", "sum", "none"})),
        needs(read_needs_of_given(needs_)) {
    if (targets_.is_none()) read_int64(kOp, "targets", targets_);  // raises
    if (targets.dtype() != DType::int64) {
      std::swap(targets, soft_targets);
      if (margin != 0 || !target_distance_.is_none() || !classes_.is_none())
        throw py::value_error("proto_loss: targets of floating point must go without margin, target_distance and classes, got one of them");
    }
    const Tensor& given = targets ? targets : soft_targets;
    require_cpu(kOp, {&given});
    if (soft_targets) require_alike(kOp, {&this->query, &soft_targets});
    require_shape(kOp, "targets", given, task_shape(targets ? Shape{Q} : Shape{Q, N}));
    if (!exclude_.is_none()) {
      exclude = read_int64(kOp, "exclude", exclude_);
      require_cpu(kOp, {&exclude});
      require_shape(kOp, "exclude", exclude, task_shape({Q}));
    }
    if (!target_distance_.is_none()) {
      target_distance = read_floating(kOp, "target_distance", target_distance_, true);
      require_alike(kOp, {&this->query, &target_distance});
      require_shape(kOp, "target_distance", target_distance, task_shape({Q}));
    }
    if (!bias_.is_none()) {
      bias = read_floating(kOp, "bias", bias_, true);
      require_alike(kOp, {&this->query, &bias});
      require_shape(kOp, "bias", bias, of_prototypes());
    }
    if (classes_.is_none()) return;
    if (margin != 0 || target_distance) throw py::value_error("proto_loss: classes must go without margin and target_distance, got both");
    classes = read_int64(kOp, "classes", classes_);
    require_cpu(kOp, {&classes});
    require_shape(kOp, "classes", classes, of_prototypes());
  }

  Tensor targets, soft_targets, exclude, target_distance, bias, classes;  // one of the first two
  int64_t ignore_index;
  double margin, smoothing;
  bool counts_hits;
  Reduction reduction;
  std::vector<bool> needs;

  Shape of_prototypes() const { return shared ? Shape{N} : task_shape({N}); }
  Shape loss_shape() const { return task_shape(reduction == Reduction::none ? Shape{Q} : Shape{}); }
  // The losses, and with `counts_hits` the share, number or places of targets that are the nearest.
  std::vector<Tensor> outputs() const {
    std::vector<Tensor> out(2);
    out[0] = query.empty(loss_shape());
    if (counts_hits) out[1] = query.empty(loss_shape());
    return out;
  }
  // For reductions "mean" and "sum": of each task's loss, with cotangent 1; prototypes [T, N, D], temperature [T], bias [T, N].
  Gradients unit_gradients(const std::vector<Tensor>& out) const;
  // Of the sum of all losses, each times its cotangent where these are given.
  py::tuple gradients_of_sum(const std::vector<Tensor>& out, const Tensor& dloss) const;
  // For reduction "none", with the cotangent of each query's loss.
  Gradients gradients(const Tensor& dloss) const;
  void losses(const std::vector<Tensor>& out) const;
  // Of 16 bits, for any reduction: the outputs, unless they are empty, and where `gradients`, those of their sum, each times its cotangent
  // (empty: 1).
  Gradients narrow(const std::vector<Tensor>& out, bool gradients, const Tensor& dloss) const;

 private:
  int64_t counted(int64_t task) const;
  // `made`, empty: query and prototypes; temperature and bias get their numbers in `sums`.
  struct Sums {
    std::vector<double> temperature, bias;  // [T], [T, N]
  };
  Gradients room(bool tasks, Sums& sums) const;
  void finish(Gradients& made, const Sums& sums, bool tasks) const;
  template <class R>
  void fill(ProtoLoss<R>& p, const R* distances, const R* biases, Sums& sums, bool asked) const {
    p.ignore_index = ignore_index, p.margin = margin, p.smoothing = smoothing;
    p.targets = targets.data<int64_t>(), p.soft_targets = soft_targets.stored<const R>();
    p.exclude = exclude.data<int64_t>(), p.classes = classes.data<int64_t>();
    p.target_distance = distances, p.bias = biases;
    p.dtemperature = asked && needs[3] ? sums.temperature.data() : nullptr;
    p.column_sums = asked && needs[6] ? sums.bias.data() : nullptr;
  }
  template <class R>
  void write_hits(const Tensor& out, const std::vector<R>& hits) const;
  // Runs the kernel for whatever is not empty.
  void run(bool folded, const std::vector<Tensor>& out, const Tensor& query_weight, const Gradients& made, Sums* sums) const;
};

}  // namespace
}  // namespace fastmeta
