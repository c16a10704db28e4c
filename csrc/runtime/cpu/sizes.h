// Sizes known to the compiler: loops over tiles whose rows stay in registers.
#pragma once
#include <cstdint>
#include <utility>

#include "runtime/cpu/simd.h"

namespace fastmeta::FASTMETA_ISA {

FASTMETA_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FASTMETA_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

template <int size>
struct Size {
  static constexpr int value = size;
};

template <class F, int... sizes>
FASTMETA_INLINE void with_size(int64_t size, F&& f, std::integer_sequence<int, sizes...>) {
  (void)((size == sizes + 1 && (f(Size<sizes + 1>()), true)) || ...);
}

// Calls f(Size<k>(), first) on parts of nearly equal size k <= largest that cover [begin, end).
template <int largest, class F>
FASTMETA_INLINE void for_each_part(int64_t begin, int64_t end, F&& f) {
  const int64_t count = end - begin, parts = (count + largest - 1) / largest;
  for (int64_t i = 0; i < parts; i++) {
    const int64_t size = count / parts + (i < count % parts);
    with_size(size, [&](auto rows) __attribute__((always_inline)) { f(rows, begin); }, std::make_integer_sequence<int, largest>());
    begin += size;
  }
}

}  // namespace fastmeta::FASTMETA_ISA
