// Loops over threads: fastmeta's own (pool.h), as many as torch.set_num_threads says. Nothing here is linked with OpenMP: two runtimes in
// one process fight for the cores.
#pragma once
#include <cstdint>

#include "runtime/pool.h"

namespace fastmeta {

// Finds in a loaded library whose path starts with `prefix` if there is one, else in any loaded OpenMP runtime, how many threads torch
// wants. Returns that library's path, or "" (then everything runs on one thread).
const char* init_parallel(const char* prefix);
int num_threads();

void parallel_run(int64_t count, int64_t grain, void (*body)(void*, Ranges&), void* context);

// Calls body(ranges) once per thread; the ranges are disjoint, at least `grain` long, and cover [0, count). Throws what a thread threw.
template <class Body>
void parallel_ranges(int64_t count, int64_t grain, Body&& body) {
  parallel_run(count, grain, [](void* context, Ranges& ranges) { (*static_cast<Body*>(context))(ranges); }, &body);
}

// Calls body(begin, end) for each of them.
template <class Body>
void parallel_for(int64_t count, int64_t grain, Body&& body) {
  parallel_ranges(count, grain, [&](Ranges& ranges) {
    for (int64_t begin, end; ranges.next(begin, end);) body(begin, end);
  });
}

}  // namespace fastmeta
