// The inner loop of one task, theta_{k+1} = theta_k - alpha_k * grad_k, and the chain of Hessian-vector products back through
// it, v_k = v_{k+1} - H_k (alpha_k * v_{k+1}).
#pragma once
#include <vector>

#include "inner/cpu/inner_rates.h"
#include "inner/cpu/mlp_task.h"

namespace fastmeta::FASTMETA_ISA {

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
  Step& step(int64_t k) { return steps_[size_t(kept_ || !k ? k : 1)]; }        // k = steps: the parameters in the end

 private:
  bool kept_;
  R* inputs_;
  std::vector<Step> steps_;
};

// The inner loop of one task after another on one thread, and the way back. Call: MlpAdapt<R> or MlpMetaLoss<R>.
template <class R, class Call>
class InnerLoop {
 public:
  // `examples`: the most that `task` will see.
  InnerLoop(const Call& call, const Layout<R>& layout, int64_t examples, bool backward, Scratch& scratch);

  const R* adapt(int64_t t);      // theta_K of task t, a whole block
  void differentiate(int64_t t);  // after adapt(), with dL/dtheta_K in `v`: writes the gradients to all that adapt() took

  Task<R> task;
  R* v;  // a whole block

 private:
  void run_chain(const void* y);

  const Call& call_;
  InnerRates<R, Layout<R>> rates_;
  RateGradients<R, Layout<R>> drates_;
  Trajectory<R> trajectory_;
  Loader<R> loader_;
  R *vec_, *dx_, *dy_;  // -alpha v; the gradients to the support, rows padded
};

}  // namespace fastmeta::FASTMETA_ISA
