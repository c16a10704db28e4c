// See convolve.h.
#include "inner/cpu/convolve.h"

namespace fastmeta::FASTMETA_ISA {

FASTMETA_CONVOLVE(, float)
FASTMETA_CONVOLVE(, double)

}  // namespace fastmeta::FASTMETA_ISA
