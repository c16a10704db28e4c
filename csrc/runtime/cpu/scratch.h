// A thread's scratch memory in pieces.
#pragma once
#include "runtime/arena.h"
#include "runtime/cpu/simd.h"

namespace fastmeta::FASTMETA_ISA {

// Hands out aligned pieces of one memory; with a null base it only counts.
class Scratch {
 public:
  explicit Scratch(void* base) : base_(static_cast<char*>(base)) {}
  template <class R>
  R* take(int64_t count) {
    char* piece = base_ ? base_ + used_ : nullptr;
    used_ += (count * int64_t(sizeof(R)) + 63) / 64 * 64;
    return reinterpret_cast<R*>(piece);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace fastmeta::FASTMETA_ISA
