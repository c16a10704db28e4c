// See matmul.h.
#include "inner/cpu/matmul.h"

namespace fastmeta::FASTMETA_ISA {

FASTMETA_MATMUL(, float)
FASTMETA_MATMUL(, double)

}  // namespace fastmeta::FASTMETA_ISA
