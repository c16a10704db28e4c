// Compiled with -fsanitize=thread, but not linked with its library, a source calls the functions below before each access to
// memory that another thread could see: so the checker gets every access, and the kernels' pointers stay pointers.
#include <cstring>

#include "emulator/checker.h"
#include "emulator/emulator.h"

using fastmeta::emulation::report_access;

#define REPORT(NAME, BYTES)                                                                                  \
  void __tsan_read##NAME(void* p) { report_access(p, BYTES, false, __builtin_return_address(0)); }           \
  void __tsan_write##NAME(void* p) { report_access(p, BYTES, true, __builtin_return_address(0)); }           \
  void __tsan_unaligned_read##NAME(void* p) { report_access(p, BYTES, false, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##NAME(void* p) { report_access(p, BYTES, true, __builtin_return_address(0)); }

extern "C" {
REPORT(1, 1)
REPORT(2, 2)
REPORT(4, 4)
REPORT(8, 8)
REPORT(16, 16)
void __tsan_read_range(void* p, size_t bytes) { report_access(p, bytes, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t bytes) { report_access(p, bytes, true, __builtin_return_address(0)); }
void* __tsan_memset(void* p, int value, size_t bytes) {  // clang's; g++ reports the copies of structs as ranges
  report_access(p, bytes, true, __builtin_return_address(0));
  return std::memset(p, value, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  report_access(from, bytes, false, __builtin_return_address(0));
  report_access(to, bytes, true, __builtin_return_address(0));
  return std::memmove(to, from, bytes);
}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  report_access(from, bytes, false, __builtin_return_address(0));
  report_access(to, bytes, true, __builtin_return_address(0));
  return std::memcpy(to, from, bytes);
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() { fastmeta::emulation::instrumented = true; }
}
