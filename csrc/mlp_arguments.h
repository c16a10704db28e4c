// What the Python-facing functions of the mlp ops share: reading their arguments, and the gradients that are asked for.
#pragma once
#include <string>
#include <vector>

#include "arguments.h"
#include "cpu/kernels.h"
#include "mlp.h"
#include "ops.h"
#ifdef FASTMETA_CUDA
#include "cuda/kernels.h"
#endif

namespace fastmeta {

using Tensors = std::vector<Tensor>;

// The parameters and the inputs of a call, checked against each other.
class MlpCall {
 public:
  MlpCall(const char* op, Handle params, Handle inputs, Str activation, Str loss);

  const char* op;
  MlpShape shape;
  Tensors params;  // W_1, b_1, ...; empty where there is no bias
  Tensor inputs;
  bool batched;  // whether there is a task axis

  int64_t count() const { return inputs.size(-2); }
  int64_t out() const { return shape.width[shape.layers]; }

  // A list in the structure of params, each with the full shape (task axis where batched).
  Tensors like_params(Handle list, const char* name) const;
  // One for all parameters or one for each, all of one kind: numbers (which become tensors), (), or the parameter's own shape
  // without tasks; each also [steps, ...]. Without `values` the tensors of numbers hold nothing.
  Tensors rates(Handle list, int64_t steps, bool values = true) const;
  Tensor examples(Handle x, const char* name) const;
  Tensor targets(Handle y, const char* name, int64_t count) const;

  std::vector<int64_t> with_tasks(std::vector<int64_t> core) const;
  std::vector<int64_t> core(int tensor) const;  // shape of one task's W or b
  Tensors empty_params() const;                 // one for each parameter, with the task axis

 private:
  Tensor rate(Handle item, const Shape& expected, bool values) const;
};

template <class R>
MlpParams<R> pointers(const MlpCall& call, const Tensors& tensors);
template <class R>
MlpRates<R> rate_pointers(const Tensors& rates);
// The same for gradients to `rates`, [T, steps or 1, size].
template <class R>
MlpRates<R> drate_pointers(const Tensors& rates, const Tensors& drates);

// The gradients that a kernel writes, one for each flat input that needs one, made per task. On a CPU those that will be summed
// over tasks lie in one tensor, the first of `made`: to make a tensor takes longer than to write a small gradient.
class Gradients {
 public:
  Gradients(const MlpCall& call, Handle needs, Tensors rates = {});

  // For the next flat inputs, in order: empty tensors where no gradient is needed.
  Tensors for_params();
  Tensors for_rates();
  Tensor for_examples(const Tensor& x);  // targets too
  bool any() const { return together_ || !made_.empty(); }
  py::tuple made() const;

  // What `made` gave, each times its task's `dloss` ([T], or () without tasks; empty: 1) and summed over tasks, in order, where the
  // input is shared by them.
  py::tuple finish(Handle made, const Tensor& dloss) const;

 private:
  Shape core(size_t i) const;  // of flat input i: a parameter or a rate
  bool is_summed(size_t i) const;
  bool is_together(size_t i) const { return total_ && is_summed(i); }
  Tensor next(const Shape& core);

  const MlpCall& call_;
  Tensors rates_;
  std::vector<bool> needs_;
  Tensor together_;               // of those that are summed
  Tensors made_;                  // the others
  int64_t total_ = 0, used_ = 0;  // elements of together_
  size_t next_ = 0;
};

// The one cotangent of a loss: [T], or () without tasks.
Tensor loss_cotangent(const MlpCall& call, Handle cotangents);

// One kernel on both devices; the CUDA one null where the extension is built without CUDA.
template <class Args>
struct Kernel {
  void (*on_cpu)(const Args&);
  const char* (*on_cuda)(const Args&, void* workspace, void* stream);
  int64_t (*workspace)(const Args&);  // in bytes
};

// Runs the kernel of the tensors' device. RuntimeError with CUDA's message where a launch fails.
template <class Args>
void launch(const MlpCall& call, const Args& args, Kernel<Args> kernel);

#ifdef FASTMETA_CUDA
#define FASTMETA_KERNEL(NAME) {cpu<R>().NAME, &cuda::NAME<R>, &cuda::NAME##_workspace<R>}
#else
#define FASTMETA_KERNEL(NAME) {cpu<R>().NAME, nullptr, nullptr}
#endif

}  // namespace fastmeta
