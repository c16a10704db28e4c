// A warp's product on the tensor cores, in TF32: floats of 11 bits, their products and sums in float32.
#pragma once
#include "runtime/cuda/launch.h"

#ifdef FASTMETA_EMULATED
#include "emulator/tensor_cores.h"
#else
namespace fastmeta::cuda {

using Tf32 = unsigned;  // the bits of a float, the last 13 of them 0

// The nearest; of two, that with the larger magnitude.
__device__ __forceinline__ Tf32 to_tf32(float value) {
  Tf32 rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded;
}

// sums [16, 8] += a [16, 8] b [8, 8], all lanes together. With g, t = lane / 4, lane % 4, a lane holds
//   a:    (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
//   b:    (t, g), (t + 4, g)
//   sums: (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1)
__device__ __forceinline__ void multiply_add(const Tf32 (&a)[4], const Tf32 (&b)[2], float (&sums)[4]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace fastmeta::cuda
#endif
