// See optimiser_formulas.h.
#include "inner/cpu/optimiser_step.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
void adam_step_fwd(const OptimiserStep<R>& p) {
  step_forward<Adam<R>>(p);
}

template <class R>
void adam_step_bwd(const OptimiserStep<R>& p) {
  step_backward<Adam<R>>(p);
}

template void adam_step_fwd(const OptimiserStep<float>&);
template void adam_step_fwd(const OptimiserStep<double>&);
template void adam_step_bwd(const OptimiserStep<float>&);
template void adam_step_bwd(const OptimiserStep<double>&);

}  // namespace fastmeta::FASTMETA_ISA
