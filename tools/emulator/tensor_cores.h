// Stands in for the instructions of tensor_cores.cuh: the same numbers in the same lanes, brought together by shuffles. Sums run
// along the inner dimension, each step rounded as a fused multiply-add; a card's order and roundings are its own.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator/cuda.h"

namespace fastmeta::cuda {

using Tf32 = unsigned;

inline Tf32 to_tf32(float value) {
  Tf32 bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return std::isfinite(value) ? (bits + 0x1000u) & ~0x1fffu : bits;
}

inline float to_float(Tf32 bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline void multiply_add(const Tf32 (&a)[4], const Tf32 (&b)[2], float (&sums)[4]) {
  const int lane = int(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  float rows[2][8], columns[8][2];  // of A and B: those of the lane's sums
  const auto from = [](int other, Tf32 first, Tf32 second, float& at_first, float& at_second) {
    const uint64_t both = __shfl_sync(0xffffffffu, uint64_t(second) << 32 | first, other);
    at_first = to_float(Tf32(both));
    at_second = to_float(Tf32(both >> 32));
  };
  for (int k = 0; k < 4; k++) {
    from(4 * g + k, a[0], a[1], rows[0][k], rows[1][k]);
    from(4 * g + k, a[2], a[3], rows[0][k + 4], rows[1][k + 4]);
    for (int c = 0; c < 2; c++) from(4 * (2 * t + c) + k, b[0], b[1], columns[k][c], columns[k + 4][c]);
  }
  for (int e = 0; e < 4; e++)
    for (int k = 0; k < 8; k++) sums[e] = std::fma(rows[e / 2][k], columns[k][e % 2], sums[e]);
}

}  // namespace fastmeta::cuda
