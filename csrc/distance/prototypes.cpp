#include "runtime/arguments.h"
#include "runtime/cpu/kernels.h"
#include "ops.h"

namespace fastmeta {
namespace {

constexpr const char* kOp = "prototypes";

struct Call {
  bool has_tasks;
  int64_t T, S, N, D;

  Call(const Tensor& features, const Tensor& labels, int64_t num_classes) {
    require_cpu(kOp, {&features, &labels});
    if (num_classes < 1) throw py::value_error("prototypes: num_classes must be at least 1, got " + std::to_string(num_classes));
    has_tasks = require_rank(kOp, "labels", labels, 1);
    T = has_tasks ? labels.size(0) : 1, S = labels.size(-1), N = num_classes;
    if (T && N > S) throw py::value_error("prototypes: every class must have a support example, got more classes than examples");
    D = features.dim() ? features.size(-1) : 0;
  }

  Shape support() const { return with_tasks(has_tasks, T, {S, D}); }
  Shape prototypes() const { return with_tasks(has_tasks, T, {N, D}); }

  template <class R>
  Prototypes<R> problem(const Tensor& labels) const {
    Prototypes<R> p;
    p.T = T, p.S = S, p.N = N, p.D = D;
    p.labels = labels.data<int64_t>();
    return p;
  }
};

}  // namespace

py::tuple prototypes_fwd(Handle support_, Handle labels_, int64_t num_classes, Handle) {
  const Tensor support = read_floating(kOp, "support", support_, true), labels = read_int64(kOp, "labels", labels_);
  const Call call(support, labels, num_classes);
  require_shape(kOp, "support", support, call.support());
  const Tensor out = support.empty(call.prototypes());
  by_dtype(support.dtype(), [&](auto zero) {
    using R = decltype(zero);
    Prototypes<R> p = call.problem<R>(labels);
    p.support = support.stored<const R>();
    p.prototypes = out.stored<R>();
    run_kernel(support.numel() + out.numel(), [&] { cpu<R>().prototypes_fwd(p); });
  });
  return py::make_tuple(pack({out}), py::tuple());
}

py::tuple prototypes_bwd(Handle cotangents, Handle, Handle support_, Handle labels_, int64_t num_classes, Handle needs_) {
  if (!read_needs(kOp, needs_, 2)[0]) return py::tuple();
  const Tensor support = read_floating(kOp, "support", support_, true), labels = read_int64(kOp, "labels", labels_);
  const Tensor cotangent = read_floating(kOp, "the cotangent", read_list(kOp, "cotangents", cotangents, 1)[0], true);
  const Call call(support, labels, num_classes);
  require_shape(kOp, "support", support, call.support());
  require_shape(kOp, "the cotangent", cotangent, call.prototypes());
  require_alike(kOp, {&support, &cotangent});
  const Tensor out = support.empty(call.support());
  by_dtype(support.dtype(), [&](auto zero) {
    using R = decltype(zero);
    Prototypes<R> p = call.problem<R>(labels);
    p.dprototypes = cotangent.stored<const R>();
    p.dsupport = out.stored<R>();
    run_kernel(support.numel() + cotangent.numel(), [&] { cpu<R>().prototypes_bwd(p); });
  });
  return pack({out});
}

}  // namespace fastmeta
