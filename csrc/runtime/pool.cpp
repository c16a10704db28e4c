// A job is a counter that threads take ranges from. `state_` says whether it is open, how many threads besides the caller are in it, and
// its number: a thread that wakes late finds it closed and goes back to sleep, and the caller leaves when nobody is in it. Two
// threads that could miss each other (one goes to sleep, the other wakes it) each write first and then read, in one order for all.
//
// A thread that has nothing to do looks for the next job for a while before it sleeps, because waking takes longer than many a call.
// On a machine that others use that while would be theirs, and the scheduler takes it back later, in the middle of a job. A gap in
// a thread's own looking tells it: then it sleeps at once, for some time.
#include "runtime/pool.h"

#include <pthread.h>
#include <strings.h>

#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace fastmeta {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// Measured on an AMD EPYC, 2 cores, AVX-512, 2026-11-29, idle and beside a busy process (docs/performance.md).
constexpr microseconds kLook{1000};      // for the next job, before a thread sleeps
constexpr microseconds kLookForEnd{20};  // for the end of a job, before the caller sleeps
constexpr microseconds kGap{30};         // between two looks: somebody else ran
constexpr microseconds kQuiet{20000};    // without looking, after a gap

constexpr uint64_t kOpen = uint64_t(1) << 31, kInside = kOpen - 1, kRound = uint64_t(1) << 32;

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

class Pool : public Ranges {
 public:
  // False where another thread's job runs.
  bool try_run(int threads, int64_t count, int64_t grain, void (*body)(void*, Ranges&), void* context);
  bool next(int64_t& begin, int64_t& end) override;

  static thread_local bool inside;  // a job: what it calls runs on this thread alone

 private:
  void work();                 // a thread's life
  bool enter(uint64_t round);  // the job of that number, if there is a seat
  void take();                 // ranges, until none is left
  void leave();
  uint64_t wait_for_job(uint64_t seen);

  std::mutex caller_;  // one job at a time
  std::atomic<uint64_t> state_{0};
  std::atomic<int64_t> taken_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::mutex mutex_;  // of those that sleep
  std::condition_variable job_, end_;
  int made_ = 0;  // threads
  bool looks_ = !(std::getenv("OMP_WAIT_POLICY") && !strcasecmp(std::getenv("OMP_WAIT_POLICY"), "passive"));

  int64_t count_ = 0, grain_ = 1;
  std::atomic<uint64_t> seats_{0};
  int64_t parts_ = 1;
  void (*body_)(void*, Ranges&) = nullptr;
  void* context_ = nullptr;
  std::fenv_t environment_;  // rounding and denormals as the caller has them
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

thread_local bool Pool::inside = false;

bool Pool::next(int64_t& begin, int64_t& end) {
  int64_t first = taken_.load(std::memory_order_relaxed);
  for (;;) {
    if (first >= count_) return false;
    const int64_t left = count_ - first, share = left / parts_, size = share < grain_ ? grain_ : share;
    const int64_t last = left - size < grain_ ? count_ : first + size;  // what is left is none, or enough
    if (!taken_.compare_exchange_weak(first, last, std::memory_order_relaxed)) continue;
    begin = first, end = last;
    return true;
  }
}

void Pool::take() {
  inside = true;
  try {
    body_(context_, *this);
  } catch (...) {  // must not leave the thread
    taken_.store(count_, std::memory_order_relaxed);
    const std::lock_guard<std::mutex> lock(error_mutex_);
    error_ = std::current_exception();
  }
  inside = false;
}

bool Pool::enter(uint64_t round) {
  uint64_t state = state_.load();
  do {
    if (state / kRound != round || !(state & kOpen) || (state & kInside) >= seats_.load()) return false;
  } while (!state_.compare_exchange_weak(state, state + 1));
  return true;
}

void Pool::leave() {
  const uint64_t state = state_.fetch_sub(1) - 1;
  if ((state & (kOpen | kInside)) || !caller_sleeps_.load()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  end_.notify_one();
}

uint64_t Pool::wait_for_job(uint64_t seen) {
  static thread_local Clock::time_point quiet_until{};
  const auto round = [&] { return state_.load() / kRound; };
  if (looks_) {
    Clock::time_point last = Clock::now();
    const Clock::time_point end = last + kLook;
    while (last < end && last >= quiet_until) {
      for (int i = 0; i < 16; i++) {
        if (round() != seen) return round();
        relax();
      }
      const Clock::time_point now = Clock::now();
      if (now - last > kGap) quiet_until = now + kQuiet;
      last = now;
    }
  }
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1);
  job_.wait(lock, [&] { return round() != seen; });
  sleepers_.fetch_sub(1);
  return round();
}

void Pool::work() {
  for (uint64_t seen = 0;;) {
    seen = wait_for_job(seen);
    if (!enter(seen)) continue;
    std::fesetenv(&environment_);
    take();
    leave();
  }
}

bool Pool::try_run(int threads, int64_t count, int64_t grain, void (*body)(void*, Ranges&), void* context) {
  const std::unique_lock<std::mutex> only(caller_, std::try_to_lock);
  if (!only) return false;
  try {
    for (; made_ < threads - 1; made_++) std::thread([this] { work(); }).detach();
  } catch (const std::system_error&) {  // no more threads can be had: those that are there do it
  }
  count_ = count, grain_ = grain, seats_ = uint64_t(threads - 1), parts_ = 2 * threads, body_ = body, context_ = context;
  std::fegetenv(&environment_);
  error_ = nullptr;
  taken_.store(0, std::memory_order_relaxed);
  const uint64_t round = (state_.load() / kRound + 1) * kRound;
  state_.store(round | kOpen);
  if (sleepers_.load()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (threads > 2) job_.notify_all();
    else job_.notify_one();
  }
  take();
  if (state_.fetch_and(~kOpen) & kInside) {
    for (const Clock::time_point end = Clock::now() + kLookForEnd; (state_.load() & kInside) && looks_ && Clock::now() < end;) relax();
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_.store(true);
    end_.wait(lock, [&] { return !(state_.load() & kInside); });
    caller_sleeps_.store(false);
  }
  if (error_) std::rethrow_exception(error_);
  return true;
}

Pool* pool = nullptr;  // never destroyed: its threads may outlive static objects

}  // namespace

void pool_run(int threads, int64_t count, int64_t grain, void (*body)(void*, Ranges&), void* context) {
  static const bool once = [] {
    pool = new Pool;
    return !pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });  // a child has none of its parent's threads
  }();
  static_cast<void>(once);
  if (threads > 1 && !Pool::inside && pool->try_run(threads, count, grain, body, context)) return;
  OneRange whole(0, count);
  body(context, whole);
}

}  // namespace fastmeta
