// Runs a kernel on the CPU, block after block. The threads of a block are fibers: each runs until it meets a barrier or a
// shuffle, in an order that a test chooses. Shared memory is filled with NaN when a block begins. A kernel that breaks a rule
// (see Fault) does not finish.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "emulator/fibers.h"

namespace fastmeta::emulation {

// What a kernel did wrong: threads at different barriers, or what the checker found.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Index {
  unsigned x;
  constexpr explicit Index(unsigned x_ = 1) : x(x_) {}
};
Index thread_index(), block_index(), block_size(), grid_size();

// A place in the source.
struct Site {
  const char* file = "";
  int line = 0;
  bool operator==(const Site& other) const { return line == other.line && !std::strcmp(file, other.file); }
  bool operator!=(const Site& other) const { return !(*this == other); }
};
void sync_block(Site site);
void sync_warp(unsigned mask, Site site);
uint64_t shuffle(unsigned mask, uint64_t bits, unsigned lane, Site site);  // the bits of that lane; orders no memory

unsigned char* dynamic_shared();
struct Declaration {
  const void* place;  // in the source
  const char* name;
  size_t bytes, alignment;
};
void* static_shared(const Declaration& array);  // one for each block

// What an instrumented access is (accesses.cpp).
void report_access(const void* address, size_t bytes, bool writes, const void* instruction);

struct Device {
  int multiprocessors = 1, shared_per_block = 227 * 1024, shared_per_multiprocessor = 228 * 1024, shared_reserved = 1024;
};
const Device& device();
int device_index();
void set_device(const Device& device);  // the current one; on one that is new no kernel has opted in to more shared memory

enum class Order { forward, reverse, random };
void set_order(Order order, uint64_t seed);

struct Launch {
  const void* kernel;
  Index blocks, threads;
  size_t shared_bytes;
  void* stream;
  Body thread;  // what each thread does
};
void* stream();                                        // the only one
bool opt_in(const void* kernel, size_t shared_bytes);  // whether the device has so much
int64_t opt_ins();                                     // so far
bool run(const Launch& launch);                        // false where CUDA would refuse the launch
void set_runs(bool runs);                              // whether kernels run, or launches are only counted
void finish();                                         // the last launch of a call is done: Fault where outputs are not complete
int64_t launches();                                    // that ran so far

}  // namespace fastmeta::emulation
