// Threads that share one job at a time. They sleep between jobs. The caller does all that no other thread has taken, so it waits for
// nobody who has not begun.
#pragma once
#include <cstdint>

namespace fastmeta {

// What a thread takes of a job, range by range. The ranges get shorter towards the end.
class Ranges {
 public:
  virtual bool next(int64_t& begin, int64_t& end) = 0;  // false: none is left

 protected:
  ~Ranges() = default;
};

class OneRange : public Ranges {
 public:
  OneRange(int64_t begin, int64_t end) : begin_(begin), end_(end) {}
  bool next(int64_t& begin, int64_t& end) override {
    begin = begin_, end = end_;
    begin_ = end_;
    return begin < end;
  }

 private:
  int64_t begin_, end_;
};

// Calls body(context, ranges) on this thread and on up to `threads` - 1 others, which together take [0, count), in ranges of
// `grain` and more where a thread's share is as much. Throws what a thread threw. Within a job, and while another thread's job runs: on
// this thread alone.
void pool_run(int threads, int64_t count, int64_t grain, void (*body)(void*, Ranges&), void* context);

}  // namespace fastmeta
