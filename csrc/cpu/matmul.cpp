// See matmul.h.
#include "matmul.h"

namespace fastmeta::FASTMETA_ISA {

FASTMETA_MATMUL(, float)
FASTMETA_MATMUL(, double)

}  // namespace fastmeta::FASTMETA_ISA
