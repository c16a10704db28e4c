// What the Python-facing functions of networks share: reading their arguments, the gradients that are asked for, and the launch.
#pragma once
#include <string>
#include <vector>

#include "inner/narrow_tasks.h"
#include "inner/network.h"
#include "ops.h"
#include "runtime/arguments.h"
#include "runtime/tensor.h"
#ifdef FASTMETA_CUDA
#include "runtime/cuda/kernels.h"
#endif

namespace fastmeta {

using Tensors = std::vector<Tensor>;

// The targets of a batch and the weights of its examples, empty where all count 1; or the gradients to them.
struct TargetTensors {
  Tensor y, weights;
};

// Learning rates: `tensors` is empty where there is none, and where it is a number.
struct RateList {
  Tensors tensors;
  std::vector<double> numbers;
};

// The ops of a network, as messages name them.
struct OpNames {
  const char *forward, *loss, *grad, *hvp, *adapt, *meta_loss;
};

// The parameters and the inputs of a call, checked against each other by the class that knows the network.
class NetworkCall {
 public:
  NetworkCall(const NetworkCall&) = delete;

  const char* op;
  Loss loss;
  Tensors params;  // empty where there is none, such as a bias
  Tensor inputs;
  bool batched;  // whether there is a task axis
  int64_t tasks, outputs = 0;
  Shape example;  // the shape of one
  Shape lead;     // of the inputs and what belongs to them between tasks and examples

  int64_t count() const { return count_of(inputs); }
  int64_t count_of(const Tensor& examples) const { return examples.size(-1 - int64_t(example.size())); }

  // A list in the structure of params, each with the full shape (task axis where batched).
  Tensors like_params(Handle list, const char* name) const;
  // The cotangents of outputs that are `first` others and then one for each parameter.
  Tensors cotangents_of_params(Handle cotangents, size_t first = 0) const;
  // One for all parameters or one for each, all of one kind: numbers, (), or the parameter's own shape without tasks; the latter two
  // also [steps, ...].
  RateList rates(Handle list, int64_t steps) const;
  Tensor examples(Handle x, const char* name) const;
  TargetTensors targets(Handle y, const char* name, int64_t count,
                        const Shape& steps = {}) const;  // y: targets, or a list of these and weights

  bool by_cuda() const;  // whether CUDA's kernels run, or their emulation in the place of the CPU's
  Shape with_tasks(Shape core) const { return fastmeta::with_tasks(batched, tasks, std::move(core)); }
  virtual Shape core(int tensor) const = 0;  // of one task's parameter
  // ValueError where the network has no output for a batch of so many.
  virtual void require_examples(int64_t) const {}
  Tensors empty_params(const Tensor& like) const;  // one for each parameter, with the task axis, of like's dtype
  Tensors rounded(Tensors tensors) const;          // to the dtype of the inputs
  // Elements from one task's to the next's in a tensor like parameter `i`; 0: one for all tasks.
  int64_t stride(const Tensor& tensor, size_t i) const;

 protected:
  NetworkCall(const char* op, Handle inputs, int64_t example_rank, Str loss, const Shape& lead);
  ~NetworkCall() = default;
  // The next one; ValueError unless it has its core's shape, with or without tasks; `turned`: its last two axes exchanged.
  void add_param(const Tensor& p, bool turned = false);

 private:
  Tensor rate(Handle item, const Shape& expected) const;
};

// The kernels' view of rates; or of gradients to them, [T, steps or 1, size], each of the kind that `rates` has.
template <class R, int tensors>
void set_rates(Rates<R, tensors>& to, const RateList& rates, const Tensors& values) {
  to.shared = rates.tensors.size() == 1;
  to.per_element = rates.tensors[0].dim() > 1, to.per_step = rates.tensors[0].dim() % 2 == 1;
  for (size_t i = 0; i < values.size(); i++) to.value[i] = values[i].data<R>();
}
template <class R, int tensors>
void set_rates(Rates<const R, tensors>& to, const RateList& rates) {
  set_rates(to, rates, rates.tensors);
  for (size_t i = 0; i < rates.numbers.size(); i++) to.number[i] = R(rates.numbers[i]);
}

// The kernels' view of a batch of examples.
template <class R>
Examples<R> examples(const NetworkCall& call, const Tensor& x, const TargetTensors& y) {
  return {call.count_of(x), x.data<R>(), y.y.data<void>(), y.weights.data<R>()};
}
template <class R>
ExampleGrads<R> example_grads(const Tensor& dx, const TargetTensors& dy) {
  return {dx.data<R>(), dy.y.data<R>(), dy.weights.data<R>()};
}

// The gradients that a kernel writes, one for each flat input that needs one, made per task, of the dtype that it computes in. Those
// that will be summed over tasks lie in one tensor, the first of `made`: to make a tensor takes longer than to write a small gradient.
class Gradients {
 public:
  Gradients(const NetworkCall& call, Handle needs, Tensors rates = {});

  // For the next flat inputs, in order: empty tensors where no gradient is needed.
  Tensors for_params();
  Tensors for_rates();
  Tensor for_examples(const Tensor& x);
  TargetTensors for_targets(const TargetTensors& y);
  bool any() const { return together_ || !made_.empty(); }
  py::tuple made() const;

  // What `made` gave, each times its task's `dloss` ([T], or () without tasks; empty: 1) and summed over tasks, in order, where the
  // input is shared by them; then rounded to the inputs' dtype.
  py::tuple finish(Handle made, const Tensor& dloss) const;

 private:
  const Tensor& input(size_t i) const;
  int64_t room(const Shape& shape) const;  // elements of a gradient among others: those of CUDA begin at multiples of 16 bytes
  Shape core(size_t i) const;              // of flat input i: a parameter or a rate
  bool is_shared(size_t i) const;          // by all tasks
  bool is_summed(size_t i) const { return is_shared(i) && call_.tasks != 1; }
  bool is_together(size_t i) const { return total_ && is_summed(i); }
  Tensor next(const Shape& core);

  const NetworkCall& call_;
  Tensors rates_;
  std::vector<bool> needs_;
  Tensor together_;               // of those that are summed
  Tensors made_;                  // the others
  int64_t total_ = 0, used_ = 0;  // elements of together_
  size_t next_ = 0;
};

// One kernel on both devices; the CUDA one null where there is none.
template <class Args>
struct Kernel {
  void (*on_cpu)(const Args&);
  const char* (*on_cuda)(const Args&, void* workspace, void* stream) = nullptr;
  int64_t (*workspace)(const Args&) = nullptr;  // in bytes
};
template <class R, class N>
struct NetworkKernels {
  Kernel<ForwardCall<R, N>> forward_fwd, forward_bwd;
  Kernel<LossCall<R, N>> loss;
  Kernel<CurvatureCall<R, N>> hvp;
  Kernel<AdaptCall<R, N>> adapt_fwd, adapt_bwd;
  Kernel<MetaLossCall<R, N>> meta_loss;
};

// Those of network NETWORK, mlp or conv, with `on_cpu` the CPU's.
#ifdef FASTMETA_CUDA
#define FASTMETA_KERNEL(NETWORK, NAME) {on_cpu.NAME, &cuda::NETWORK##_##NAME<R>, &cuda::NETWORK##_##NAME##_workspace<R>}
#else
#define FASTMETA_KERNEL(NETWORK, NAME) {on_cpu.NAME}
#endif
#define FASTMETA_NETWORK_KERNELS(NETWORK)                                                                             \
  {FASTMETA_KERNEL(NETWORK, forward_fwd), FASTMETA_KERNEL(NETWORK, forward_bwd), FASTMETA_KERNEL(NETWORK, loss),      \
   FASTMETA_KERNEL(NETWORK, hvp),         FASTMETA_KERNEL(NETWORK, adapt_fwd),   FASTMETA_KERNEL(NETWORK, adapt_bwd), \
   FASTMETA_KERNEL(NETWORK, meta_loss)}

// Runs a kernel on numbers of the dtype of `like`: of 16 bits at least so many tasks at a time.
template <class Args>
void run_on_cpu(const Tensor& like, const Args& args, int64_t least, void (*kernel)(const Args&)) {
  if constexpr (kIsFloat<Args>)
    if (like.narrow()) return run_narrow(like.stored<float>().as, args, least, kernel);
  kernel(args);
}

// Runs the kernel of the tensors' device. RuntimeError with CUDA's message where a launch fails.
template <class Args>
void launch(const NetworkCall& call, const Args& args, Kernel<Args> kernel) {
  if (!call.inputs.on_cuda()) {
    py::gil_scoped_release release;
    return run_on_cpu(call.inputs, args, kNarrowTasks, kernel.on_cpu);
  }
  if (!kernel.on_cuda) throw std::runtime_error(std::string(call.op) + ": the extension must be built with CUDA, got CUDA tensors");
#ifdef FASTMETA_CUDA
  if (!call.tasks) return;
  cuda::DeviceGuard guard(call.inputs.device_index());
  const int64_t bytes = kernel.workspace(args);
  const Tensor memory = bytes ? call.inputs.empty({(bytes + 7) / 8 * (8 / call.inputs.item_size())}) : Tensor();
  require_launched(call.op, kernel.on_cuda(args, memory.data<void>(), current_stream(call.inputs)));
#endif
}

// The one cotangent of a loss: [T], or () without tasks; of the dtype that kernels compute in.
Tensor loss_cotangent(const NetworkCall& call, Handle cotangents);

}  // namespace fastmeta
