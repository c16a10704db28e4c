// parallel_for on the OpenMP runtime that torch has already loaded, so that both share one pool of threads and
// torch.set_num_threads holds for both. Nothing here is linked with OpenMP: two runtimes in one process fight for the cores.
#pragma once
#include <cstdint>

namespace fastmeta {

// Finds GOMP_parallel in a loaded library whose path starts with `prefix` if there is one, else in any loaded OpenMP
// runtime. Returns that library's path, or "" (then everything runs on one thread).
const char* init_parallel(const char* prefix);
int num_threads();

void parallel_run(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context);

// Calls body(begin, end) on disjoint ranges that cover [0, count), each of at least `grain` items, once per thread. Throws what a
// thread threw.
template <class Body>
void parallel_for(int64_t count, int64_t grain, Body&& body) {
  parallel_run(count, grain, [](void* context, int64_t begin, int64_t end) { (*static_cast<Body*>(context))(begin, end); }, &body);
}

}  // namespace fastmeta
