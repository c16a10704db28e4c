// How kernels read and write numbers of 16 bits: a block at a time, widened to float and rounded from it (to nearest, ties to even).
// Numbers that are stored as the kernel has them are read and written where they lie.
#pragma once
#include "runtime/stored.h"
#include "runtime/cpu/simd.h"

namespace fastmeta::FASTMETA_ISA {

void widen(Storage as, const uint16_t* from, int64_t count, float* to);
void narrow(Storage as, const float* from, int64_t count, uint16_t* to);

// The numbers [first, first + count): where they lie, or in `room`.
template <class R>
FASTMETA_INLINE const R* read(const Stored<const R>& x, int64_t first, int64_t count, R* room) {
  if constexpr (sizeof(R) == sizeof(float))
    if (x.narrow()) {
      widen(x.as, reinterpret_cast<const uint16_t*>(x.numbers) + first, count, room);
      return room;
    }
  return x.numbers + first;
}

// Where the numbers from `first` on are to be made, in their place or in `room`; `put` then brings them to their place.
template <class R>
FASTMETA_INLINE R* place(const Stored<R>& x, int64_t first, R* room) {
  return x.narrow() ? room : x.numbers + first;
}
template <class R>
FASTMETA_INLINE void put(const Stored<R>& x, int64_t first, int64_t count, const R* made) {
  if constexpr (sizeof(R) == sizeof(float))
    if (x.narrow()) narrow(x.as, made, count, reinterpret_cast<uint16_t*>(x.numbers) + first);
}

}  // namespace fastmeta::FASTMETA_ISA
