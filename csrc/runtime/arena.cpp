#include "runtime/arena.h"

#include <cstdlib>
#include <new>
#include <string>

namespace fastmeta {
namespace {

struct Buffer {
  void* data = nullptr;
  size_t size = 0;
  ~Buffer() { std::free(data); }
};

class OutOfMemory : public std::bad_alloc {  // in Python a MemoryError with these words
 public:
  explicit OutOfMemory(size_t bytes)
      : text_("fastmeta: what a call keeps must fit into memory, got " + std::to_string(bytes) + " bytes on a thread") {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
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
      throw OutOfMemory(bytes);
    }
  }
  return buffer.data;
}

}  // namespace fastmeta
