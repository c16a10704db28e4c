// Loops over the threads of the OpenMP runtime that torch has already loaded, so that both share one pool and torch.set_num_threads holds
// for both. Nothing here is linked with OpenMP: two runtimes in one process fight for the cores.
#pragma once
#include <cstdint>

namespace fastmeta {

// Finds GOMP_parallel in a loaded library whose path starts with `prefix` if there is one, else in any loaded OpenMP
// runtime. Returns that library's path, or "" (then everything runs on one thread).
const char* init_parallel(const char* prefix);
int num_threads();
int threads_now();  // num_threads(), or 1 while callers work alone

// What a thread takes of a job, range by range. The ranges get shorter towards the end.
class Ranges {
 public:
  virtual bool next(int64_t& begin, int64_t& end) = 0;  // false: none is left

 protected:
  ~Ranges() = default;
};

void parallel_run(int64_t count, int64_t grain, void (*body)(void*, Ranges&), void* context);

// Calls body(ranges) once per thread; the ranges are disjoint and cover [0, count), each of `grain` and more where a thread's share is
// as much. Throws what a thread threw.
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
