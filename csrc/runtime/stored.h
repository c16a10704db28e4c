// Numbers of 16 bits, and where a kernel finds its numbers: see cpu/stored.h for how it reads and writes them.
#pragma once
#include <cstdint>
#include <cstring>

namespace fastmeta {

enum class Storage : int { wide, float16, bfloat16 };

// Numbers in memory: of type R, or of 16 bits each, which the kernels compute with in float.
template <class R>
struct Stored {
  R* numbers = nullptr;
  Storage as = Storage::wide;

  Stored() = default;
  Stored(R* numbers, Storage as = Storage::wide) : numbers(numbers), as(as) {}
  explicit operator bool() const { return numbers; }
  bool narrow() const { return as != Storage::wide; }
};

}  // namespace fastmeta
