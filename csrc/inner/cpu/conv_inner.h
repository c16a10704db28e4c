// The inner loop of one task, theta_{k+1} = theta_k - alpha_k * grad_k, and the chain of Hessian-vector products back through
// it, v_k = v_{k+1} - H_k (alpha_k * v_{k+1}). What the steps leave is kept where it is small (kKeptBytes), else computed again on
// the way back: memory grows with the steps by their parameters alone.
#pragma once
#include "inner/cpu/conv_task.h"
#include "inner/cpu/inner_rates.h"

namespace fastmeta::FASTMETA_ISA {

// One task after another on one thread. Call: ConvAdapt<R> or ConvMetaLoss<R>.
template <class R, class Call>
class ConvInnerLoop {
 public:
  // `examples`: the most that `task` will see.
  ConvInnerLoop(const Call& call, const ConvLayout<R>& layout, int64_t examples, bool backward, Scratch& scratch);

  const R* adapt(int64_t t);      // theta_K of task t, a whole block
  void differentiate(int64_t t);  // after adapt(), with dL/dtheta_K in `v`: writes the gradients to all that adapt() took

  ConvTask<R> task;
  R* v;  // a whole block

 private:
  ConvPass<R>& pass(int64_t k) { return passes_[size_t(kept_ ? k : 0)]; }
  R* theta(int64_t k) { return thetas_[size_t(thetas_.size() > 2 || !k ? k : 1)]; }
  R* grad(int64_t k) { return grads_[size_t(grads_.size() > 1 ? k : 0)]; }
  void gradient(int64_t k, const void* y);

  const Call& call_;
  InnerRates<R, ConvLayout<R>> rates_;
  RateGradients<R, ConvLayout<R>> drates_;
  ConvLoader<R> loader_;
  std::vector<ConvPass<R>> passes_;  // of every step, or of one after the other
  std::vector<R*> thetas_, grads_;   // thetas_: all, or the first and the last
  bool kept_;
  R* vec_;  // -alpha v, a whole block
};

}  // namespace fastmeta::FASTMETA_ISA
