// Scratch memory of the kernels, kept from call to call.
#pragma once
#include <cstddef>

namespace fastmeta {

// At least `bytes` bytes of this thread's scratch, 64-byte aligned, contents undefined. It is one buffer: the next call on
// the same thread may move it, so a kernel asks once for all that it needs, and never inside a parallel_for that it called
// while it still uses what it got. Freed when the thread ends. Throws std::bad_alloc.
void* thread_arena(size_t bytes);

}  // namespace fastmeta
