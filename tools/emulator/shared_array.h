// An array in a block's shared memory: of its exact size, so that an address sanitizer sees its end.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace fastmeta::emulation {

struct FreeMemory {
  void operator()(unsigned char* memory) const { std::free(memory); }
};

struct SharedArray {
  const void* place;  // in the source
  size_t bytes;
  std::unique_ptr<unsigned char, FreeMemory> memory;

  SharedArray(const void* place_, size_t bytes_) : place(place_), bytes(bytes_) {
    void* made = nullptr;
    if (posix_memalign(&made, 16, bytes ? bytes : 1)) throw std::bad_alloc();
    memory.reset(static_cast<unsigned char*>(made));
    poison();
  }
  void poison() { std::memset(memory.get(), 0xff, bytes); }  // NaN in every floating type
};

}  // namespace fastmeta::emulation
