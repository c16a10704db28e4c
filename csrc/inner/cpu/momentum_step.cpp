// See optimiser_formulas.h.
#include "inner/cpu/optimiser_step.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
void momentum_step_fwd(const OptimiserStep<R>& p) {
  if (p.nesterov) step_forward<Momentum<R, true>>(p);
  else step_forward<Momentum<R, false>>(p);
}

template <class R>
void momentum_step_bwd(const OptimiserStep<R>& p) {
  if (p.nesterov) step_backward<Momentum<R, true>>(p);
  else step_backward<Momentum<R, false>>(p);
}

template void momentum_step_fwd(const OptimiserStep<float>&);
template void momentum_step_fwd(const OptimiserStep<double>&);
template void momentum_step_bwd(const OptimiserStep<float>&);
template void momentum_step_bwd(const OptimiserStep<double>&);

}  // namespace fastmeta::FASTMETA_ISA
