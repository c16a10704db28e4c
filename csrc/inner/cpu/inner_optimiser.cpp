// See inner_optimiser.h.
#include "inner/cpu/inner_optimiser.h"

#include "inner/cpu/optimiser_formulas.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

// Calls f(formula) with that of step number `step`.
template <class R, class F>
void with_formula(const InnerOptimiser& optimiser, int64_t step, F&& f) {
  if (!optimiser.adam) return optimiser.nesterov ? f(Momentum<R, true>(optimiser)) : f(Momentum<R, false>(optimiser));
  OptimiserNumbers numbers = optimiser;
  numbers.correction1 = 1 - std::pow(optimiser.beta1, double(step));
  numbers.correction2 = 1 - std::pow(optimiser.beta2, double(step));
  if (optimiser.eps_hat) numbers.eps /= std::sqrt(numbers.correction2);
  f(Adam<R>(numbers));
}

}  // namespace

template <class R>
void optimise(const InnerOptimiser& optimiser, int64_t step, const OptimiserSpan<R>& s) {
  with_formula<R>(optimiser, step, [&](const auto& formula) { columns_forward(formula, s.in, s.one, s.count, s.out); });
}

template <class R>
void optimise_back(const InnerOptimiser& optimiser, int64_t step, const OptimiserSpan<R>& s) {
  with_formula<R>(optimiser, step, [&](const auto& formula) { columns_back(formula, s.in, s.one, s.dout, s.count, s.din); });
}

#define INSTANTIATE(R)                                                                \
  template void optimise<R>(const InnerOptimiser&, int64_t, const OptimiserSpan<R>&); \
  template void optimise_back<R>(const InnerOptimiser&, int64_t, const OptimiserSpan<R>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
