// A job's items are shared out in advance, a stretch for each thread, so that from call to call a thread meets the same memory. A thread
// takes ranges from the front of its own stretch, then from the back of the others'. `state_` says whether the job is open, how many
// threads besides the caller are in it, and its number: a thread that wakes late finds it closed and goes back to sleep, and the caller
// leaves when nobody is in it. Two threads that could miss each other (one goes to sleep, the other wakes it) each write first and then
// read, in one order for all.
//
// A thread that has nothing to do looks for the next job for a while before it sleeps, because waking takes longer than many a call.
//
// Where another process wants the cores too, the scheduler takes one from a thread in the middle of a range, for milliseconds, and the
// caller waits longer than the whole job takes alone. A thread whose clock has gone on without it tells: then the caller works alone for
// a time, twice as long each time that it happens again, half as long after many jobs without.
#include "runtime/pool.h"

#include <pthread.h>
#include <strings.h>
#include <time.h>

#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace fastmeta {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// Measured on an AMD EPYC, 2 cores, AVX-512, 2026-11-29, idle and beside a busy process (docs/performance.md).
constexpr microseconds kLook{1000};                        // for the next job, before a thread sleeps
constexpr microseconds kLookForEnd{50};                    // for the end of a job, before the caller sleeps
constexpr microseconds kGone{300};                         // of a thread's time in a job, and a quarter of it: somebody else ran
constexpr microseconds kAlone{10000}, kMostAlone{640000};  // the caller, after that
constexpr int kGood = 100;                                 // jobs in a row, for half of that time

constexpr uint64_t kOpen = uint64_t(1) << 31, kInside = kOpen - 1, kRound = uint64_t(1) << 32;

// A thread's time that it has not run, since it began.
class Absence {
 public:
  Absence() : begun_(Clock::now()), run_(run()) {}
  bool is_long() const {
    const std::chrono::nanoseconds all = Clock::now() - begun_, gone = all - (run() - run_);
    return gone > kGone && gone > all / 4;
  }

 private:
  static std::chrono::nanoseconds run() {
    timespec used;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec);
  }
  Clock::time_point begun_;
  std::chrono::nanoseconds run_;
};

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// What is left of a thread's stretch, [begin, end), in units of the job: begin in the high half.
struct alignas(64) Stretch {
  std::atomic<uint64_t> left{0};

  // The first, or the last, half of what is left, at least `grain`; what then would be left is none, or as much.
  bool take(bool from_front, int64_t grain, int64_t& begin, int64_t& end);
};

class Pool {
 public:
  // False where another thread's job runs.
  bool try_run(int threads, int64_t count, int64_t grain, void (*body)(void*, Ranges&), void* context);
  bool next(size_t seat, int64_t& begin, int64_t& end);

  static thread_local bool inside;  // a job: what it calls runs on this thread alone

 private:
  void work();                   // a thread's life
  size_t enter(uint64_t round);  // the seat in the job of that number, or 0
  void take(size_t seat);        // ranges, until none is left
  void leave();
  uint64_t wait_for_job(uint64_t seen);
  void wait_for_end();
  void judge(bool disturbed);

  std::mutex caller_;  // one job at a time
  std::atomic<uint64_t> state_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false}, disturbed_{false}, helped_{false};
  std::mutex mutex_;  // of those that sleep
  std::condition_variable job_, end_;
  int made_ = 0;                     // threads
  Clock::time_point alone_until_{};  // the caller
  Clock::duration alone_ = kAlone;   // for how long the next time
  int good_ = 0;                     // jobs in a row without a disturbance
  bool looks_ = !(std::getenv("OMP_WAIT_POLICY") && !strcasecmp(std::getenv("OMP_WAIT_POLICY"), "passive"));

  int64_t count_ = 0, grain_ = 1, unit_ = 1;  // grain_: in units of so many items
  std::vector<Stretch> stretches_;            // one for each seat, the caller's first
  std::atomic<uint64_t> seats_{0};
  void (*body_)(void*, Ranges&) = nullptr;
  void* context_ = nullptr;
  std::fenv_t environment_;  // rounding and denormals as the caller has them
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

thread_local bool Pool::inside = false;

bool Stretch::take(bool from_front, int64_t grain, int64_t& begin, int64_t& end) {
  uint64_t before = left.load(std::memory_order_relaxed), after;
  do {
    begin = int64_t(before >> 32), end = int64_t(uint32_t(before));
    if (begin >= end) return false;
    int64_t size = (end - begin + 1) / 2;
    if (size < grain || end - begin - size < grain) size = end - begin < 2 * grain ? end - begin : grain;
    if (from_front) after = uint64_t(begin + size) << 32 | uint64_t(end), end = begin + size;
    else after = uint64_t(begin) << 32 | uint64_t(end - size), begin = end - size;
  } while (!left.compare_exchange_weak(before, after, std::memory_order_relaxed));
  return true;
}

bool Pool::next(size_t seat, int64_t& begin, int64_t& end) {
  bool found = stretches_[seat].take(true, grain_, begin, end);
  for (size_t i = 1; i < stretches_.size() && !found; i++)
    found = stretches_[(seat + i) % stretches_.size()].take(false, grain_, begin, end);
  begin *= unit_, end = end * unit_ < count_ ? end * unit_ : count_;
  return found;
}

void Pool::take(size_t seat) {
  struct OfSeat : Ranges {
    OfSeat(Pool& pool, size_t seat) : pool(pool), seat(seat) {}
    bool next(int64_t& begin, int64_t& end) override { return pool.next(seat, begin, end); }
    Pool& pool;
    size_t seat;
  } ranges(*this, seat);
  inside = true;
  try {
    body_(context_, ranges);
  } catch (...) {  // must not leave the thread
    for (Stretch& stretch : stretches_) stretch.left.store(0, std::memory_order_relaxed);
    const std::lock_guard<std::mutex> lock(error_mutex_);
    error_ = std::current_exception();
  }
  inside = false;
}

size_t Pool::enter(uint64_t round) {
  uint64_t state = state_.load();
  do {
    if (state / kRound != round || !(state & kOpen) || (state & kInside) >= seats_.load()) return 0;
  } while (!state_.compare_exchange_weak(state, state + 1));
  helped_.store(true);
  return size_t(state & kInside) + 1;
}

void Pool::leave() {
  const uint64_t state = state_.fetch_sub(1) - 1;
  if ((state & (kOpen | kInside)) || !caller_sleeps_.load()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  end_.notify_one();
}

uint64_t Pool::wait_for_job(uint64_t seen) {
  const auto round = [&] { return state_.load() / kRound; };
  if (looks_) {
    for (const Clock::time_point end = Clock::now() + kLook; Clock::now() < end;)
      for (int i = 0; i < 16; i++) {
        if (round() != seen) return round();
        relax();
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
    const size_t seat = enter(seen);
    if (!seat) continue;
    const Absence absence;
    std::fesetenv(&environment_);
    take(seat);
    if (absence.is_long()) disturbed_.store(true);
    leave();
  }
}

// Of a job that this thread has nothing more to do for.
void Pool::wait_for_end() {
  for (const Clock::time_point end = Clock::now() + kLookForEnd; (state_.load() & kInside) && looks_ && Clock::now() < end;) relax();
  if (state_.load() & kInside) {
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_.store(true);
    end_.wait(lock, [&] { return !(state_.load() & kInside); });
    caller_sleeps_.store(false);
  }
}

void Pool::judge(bool disturbed) {
  if (disturbed) {
    alone_until_ = Clock::now() + alone_;
    if (alone_ < kMostAlone) alone_ *= 2;
    good_ = 0;
  } else if (++good_ >= kGood) {
    if (alone_ > kAlone) alone_ /= 2;
    good_ = 0;
  }
}

bool Pool::try_run(int threads, int64_t count, int64_t grain, void (*body)(void*, Ranges&), void* context) {
  const std::unique_lock<std::mutex> only(caller_, std::try_to_lock);
  if (!only) return false;
  if (Clock::now() < alone_until_) return false;
  try {
    for (; made_ < threads - 1; made_++) std::thread([this] { work(); }).detach();
  } catch (const std::system_error&) {  // no more threads can be had: those that are there do it
  }
  unit_ = 1 + count / INT32_MAX;
  const int64_t units = (count + unit_ - 1) / unit_;
  count_ = count, grain_ = (grain + unit_ - 1) / unit_, seats_ = uint64_t(threads - 1), body_ = body, context_ = context;
  if (stretches_.size() != size_t(threads)) stretches_ = std::vector<Stretch>(size_t(threads));
  for (int64_t i = 0; i < threads; i++) {
    const int64_t begin = units * i / threads, end = units * (i + 1) / threads;
    stretches_[size_t(i)].left.store(uint64_t(begin) << 32 | uint64_t(end), std::memory_order_relaxed);
  }
  std::fegetenv(&environment_);
  error_ = nullptr;
  helped_.store(false);
  const uint64_t round = (state_.load() / kRound + 1) * kRound;
  state_.store(round | kOpen);
  if (sleepers_.load()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (threads > 2) job_.notify_all();
    else job_.notify_one();
  }
  take(0);
  if (state_.fetch_and(~kOpen) & kInside) wait_for_end();
  if (helped_.load()) judge(disturbed_.exchange(false));
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
