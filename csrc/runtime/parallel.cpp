// A job's items are shared out in advance, a stretch for each thread, so that from call to call a thread meets the same memory; who is done
// helps the others. OpenMP joins its whole team at the end. Where another process wants the cores too, the scheduler keeps a thread
// from its core for milliseconds, and the caller waits longer than the whole job takes alone. Such a thread sees it by the clock: then
// callers work alone for a time, twice as long each time that it happens again, half as long after many jobs without.
#include "runtime/parallel.h"

#include <dlfcn.h>
#include <link.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace fastmeta {
namespace {

using namespace std::chrono_literals;

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Query = int (*)();

Parallel gomp_parallel = nullptr;
Query omp_max_threads, omp_thread_num, omp_in_parallel;
std::string library;

struct Search {
  std::string prefix, path;
  bool preferred = false;
};

int visit(dl_phdr_info* info, size_t, void* data) {
  auto* search = static_cast<Search*>(data);
  const char* path = info->dlpi_name;
  const char* slash = path ? strrchr(path, '/') : nullptr;
  const char* name = slash ? slash + 1 : path;
  if (!name || search->preferred) return 0;
  if (strncmp(name, "libgomp", 7) && strncmp(name, "libomp", 6) && strncmp(name, "libiomp5", 8)) return 0;
  search->path = path;
  search->preferred = !search->prefix.empty() && search->path.compare(0, search->prefix.size(), search->prefix) == 0;
  return 0;
}

using Clock = std::chrono::steady_clock;
using std::chrono::nanoseconds;

// Measured on an AMD EPYC, 2 cores, AVX-512, 2026-11-29, idle and beside a busy process (`make neighbour`).
constexpr nanoseconds kLate = 300us;  // that a thread begins after the caller, or is away, if a quarter of the job: somebody else ran
constexpr nanoseconds kAlone = 10ms, kMostAlone = 640ms;  // the caller, after that
constexpr int kGood = 100;                                // jobs in a row, for half of that time

// When callers work alone. Several threads may call: what they tell each other may be a little old.
std::atomic<int64_t> alone_until{0}, alone_for{kAlone.count()};
std::atomic<int> good{0};

int64_t now() { return nanoseconds(Clock::now().time_since_epoch()).count(); }

void judge(bool disturbed) {
  if (disturbed) {
    alone_until = now() + alone_for;
    if (alone_for < kMostAlone.count()) alone_for = 2 * alone_for;
    good = 0;
  } else if (++good >= kGood) {
    if (alone_for > kAlone.count()) alone_for = alone_for / 2;
    good = 0;
  }
}

bool is_long(int64_t gone, int64_t all) { return gone > kLate.count() && gone > all / 4; }

// Time on the clock that this thread has not run, since it began.
class Absence {
 public:
  bool was_long() const {
    const int64_t all = now() - begun_;
    return is_long(all - (run() - run_), all);
  }

 private:
  static int64_t run() {
    timespec used;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return used.tv_sec * int64_t(1000000000) + used.tv_nsec;
  }
  int64_t begun_ = now(), run_ = run();
};

// What is left of a thread's stretch, [begin, end), in units of the job: begin in the high half.
struct alignas(64) Stretch {
  std::atomic<uint64_t> left{0};

  // The first, or the last, half of what is left, at least `grain`; what then would be left is none, or as much.
  bool take(bool from_front, int64_t grain, int64_t& begin, int64_t& end);
};

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

struct Job {
  int64_t count, grain, unit;  // grain: in units of so many items
  void (*body)(void*, Ranges&);
  void* context;
  std::vector<Stretch> stretches;  // one for each thread
  int64_t published = now();
  std::atomic<bool> disturbed{false};
  std::mutex mutex = {};
  std::exception_ptr error = nullptr;
};

// A thread takes ranges from the front of its own stretch, then from the back of the others'.
class OfJob : public Ranges {
 public:
  OfJob(Job& job, size_t thread) : job_(job), thread_(thread) {}
  bool next(int64_t& begin, int64_t& end) override {
    std::vector<Stretch>& all = job_.stretches;
    bool found = all[thread_].take(true, job_.grain, begin, end);
    for (size_t i = 1; i < all.size() && !found; i++) found = all[(thread_ + i) % all.size()].take(false, job_.grain, begin, end);
    begin *= job_.unit, end = end * job_.unit < job_.count ? end * job_.unit : job_.count;
    return found;
  }

 private:
  Job& job_;
  size_t thread_;
};

// The ranges of a thread that works alone: one.
class Whole : public Ranges {
 public:
  explicit Whole(int64_t count) : count_(count) {}
  bool next(int64_t& begin, int64_t& end) override {
    begin = 0, end = count_;
    count_ = 0;
    return end > 0;
  }

 private:
  int64_t count_;
};

void run_share(void* data) {
  auto* job = static_cast<Job*>(data);
  static thread_local unsigned jobs = 0;
  const bool helps = omp_thread_num();
  const int64_t delay = helps ? now() - job->published : 0;
  std::optional<Absence> absence;  // a system call each: of every eighth job
  if (helps && ++jobs % 8 == 0) absence.emplace();
  OfJob ranges(*job, size_t(omp_thread_num()) % job->stretches.size());
  try {
    job->body(job->context, ranges);
  } catch (...) {  // must not leave the thread
    for (Stretch& stretch : job->stretches) stretch.left = 0;
    const std::lock_guard<std::mutex> lock(job->mutex);
    job->error = std::current_exception();
  }
  const bool late = helps && is_long(delay, now() - job->published);
  if (late || (absence && absence->was_long())) job->disturbed = true;
}

}  // namespace

const char* init_parallel(const char* prefix) {
  Search search{prefix, ""};
  dl_iterate_phdr(visit, &search);
  gomp_parallel = nullptr;
  library.clear();
  void* handle = search.path.empty() ? nullptr : dlopen(search.path.c_str(), RTLD_NOLOAD | RTLD_LAZY);
  if (!handle) return library.c_str();
  auto parallel = reinterpret_cast<Parallel>(dlsym(handle, "GOMP_parallel"));
  omp_max_threads = reinterpret_cast<Query>(dlsym(handle, "omp_get_max_threads"));
  omp_thread_num = reinterpret_cast<Query>(dlsym(handle, "omp_get_thread_num"));
  omp_in_parallel = reinterpret_cast<Query>(dlsym(handle, "omp_in_parallel"));
  if (!parallel || !omp_max_threads || !omp_thread_num || !omp_in_parallel) return library.c_str();
  gomp_parallel = parallel;
  library = search.path;
  return library.c_str();
}

int num_threads() { return gomp_parallel ? omp_max_threads() : 1; }
int threads_now() { return now() < alone_until ? 1 : num_threads(); }

void parallel_run(int64_t count, int64_t grain, void (*body)(void*, Ranges&), void* context) {
  if (count <= 0) return;
  const int64_t shares = grain > 1 ? (count + grain - 1) / grain : count;
  int64_t threads = gomp_parallel && shares > 1 && !omp_in_parallel() ? omp_max_threads() : 1;
  if (shares < threads) threads = shares;
  if (threads <= 1 || now() < alone_until) {
    Whole whole(count);
    return body(context, whole);
  }
  const int64_t unit = 1 + count / INT32_MAX, units = (count + unit - 1) / unit;
  Job job{count, (grain + unit - 1) / unit, unit, body, context, std::vector<Stretch>(size_t(threads))};
  for (int64_t i = 0; i < threads; i++)
    job.stretches[size_t(i)].left = uint64_t(units * i / threads) << 32 | uint64_t(units * (i + 1) / threads);
  gomp_parallel(run_share, &job, unsigned(threads), 0);
  judge(job.disturbed);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace fastmeta
