// See distance.h, blocks.h and softmax.h.
#include "distance/cpu/blocks.h"
#include "distance/cpu/softmax.h"

namespace fastmeta::FASTMETA_ISA {

FASTMETA_DISTANCE(, float)
FASTMETA_DISTANCE(, double)
FASTMETA_SOFTMAX(, float)
FASTMETA_SOFTMAX(, double)

}  // namespace fastmeta::FASTMETA_ISA
