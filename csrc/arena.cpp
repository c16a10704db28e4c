#include "arena.h"

#include <cstdlib>
#include <new>

namespace fastmeta {
namespace {

struct Buffer {
  void* data = nullptr;
  size_t size = 0;
  ~Buffer() { std::free(data); }
};

}  // namespace

void* thread_arena(size_t bytes) {
  static thread_local Buffer buffer;
  if (bytes > buffer.size || !buffer.data) {
    std::free(buffer.data);
    buffer.size = (bytes + bytes / 2 + 4095) / 4096 * 4096 + 4096;
    buffer.data = std::aligned_alloc(64, buffer.size);
    if (!buffer.data) {
      buffer.size = 0;
      throw std::bad_alloc();
    }
  }
  return buffer.data;
}

}  // namespace fastmeta
