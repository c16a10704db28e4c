// The inner loop of one task, theta_{k+1} = theta_k - alpha_k * grad_k, and the chain of Hessian-vector products back through
// it, v_k = v_{k+1} - H_k (alpha_k * v_{k+1}).
#pragma once
#include <vector>

#include "mlp_task.h"

namespace fastmeta::FASTMETA_ISA {

// The learning rates of a call, those of each element as blocks; the same for all tasks.
template <class R>
class InnerRates {
 public:
  InnerRates(const Layout<R>& layout, const MlpRates<const R>& rates, int64_t steps, Scratch& scratch);

  void load();
  // out = base - alpha_k * x; without a base, -alpha_k * x. Blocks of gradients.
  void descend(int64_t k, const R* base, const R* x, R* out) const;

 private:
  const Layout<R>& layout_;
  const MlpRates<const R>& rates_;
  int64_t kinds_;  // steps that have rates of their own
  R* blocks_;
};

// The gradients to the rates, of one task at a time.
template <class R>
class RateGradients {
 public:
  RateGradients(const Layout<R>& layout, const MlpRates<R>& drates, int64_t steps, Scratch& scratch);

  bool asked() const { return asked_; }
  void clear();
  void add(int64_t k, const R* grad, const R* v);  // -= grad * v
  void store(int64_t task) const;

 private:
  R* block(int64_t k) const { return blocks_ + (kinds_ > 1 ? k : 0) * layout_.gradient; }
  R* sums(int64_t k) const { return sums_ + (kinds_ > 1 ? k : 0) * 2 * kMaxLayers; }

  const Layout<R>& layout_;
  const MlpRates<R>& drates_;
  int64_t kinds_;
  bool asked_ = false;
  R *blocks_, *sums_;  // rates of each element; of each tensor
};

// The parameters and the pass of every step. Without `kept`, the parameters alone, the first and the last.
template <class R>
class Trajectory {
 public:
  struct Step {
    R* theta;
    R* grad;
    Pass<R> pass;
  };

  // `examples`: of the support, whose inputs all steps share. `keeps_gradients`: so that rates can have theirs.
  Trajectory(const Task<R>& task, int64_t examples, int64_t steps, bool kept, bool keeps_gradients, Scratch& scratch);

  void load(const MlpShape& shape, const MlpExamples<R>& support, int64_t t);  // the inputs of task t
  Step& step(int64_t k) { return steps_[size_t(kept_ || !k ? k : 1)]; }  // k = steps: the parameters in the end

 private:
  bool kept_;
  R* inputs_;
  std::vector<Step> steps_;
};

// From the parameters of step 0 and the inputs, both loaded, to those of the last step.
template <class R>
void descend(const Task<R>& task, Trajectory<R>& trajectory, const InnerRates<R>& rates, const void* y, int64_t steps);

template <class R>
struct Chain {
  const Task<R>& task;
  Trajectory<R>& trajectory;
  const InnerRates<R>& rates;
  RateGradients<R>& drates;  // of this task; added to
  const void* y;
  int64_t steps;
  bool first_order;
  R* vec;                    // scratch, a whole block
  R *dx, *dy;                // [n, padded in], [n, padded out]: written, the gradients to the support; or null
};

// v: dL/dtheta_K -> dL/dtheta_0, a block of gradients, in place.
template <class R>
void run_chain(const Chain<R>& chain, R* v);

}  // namespace fastmeta::FASTMETA_ISA
