// Scratch memory of the kernels, kept from call to call.
#pragma once
#include <cstddef>

namespace fastmeta {

// At least `bytes` bytes of this thread's scratch, 64-byte aligned, contents undefined. It is one buffer, and the
// next call on the same thread may move it: a kernel asks once for all that it needs, and the bodies of a
// parallel_for do not ask where their caller still uses what it got. Freed when the thread ends. Throws
// std::bad_alloc.
void* thread_arena(size_t bytes);

}  // namespace fastmeta
