#include "runtime/parallel.h"

#include <dlfcn.h>
#include <link.h>
#include <strings.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>

namespace fastmeta {
namespace {

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Query = int (*)();

Parallel gomp_parallel = nullptr;
Query omp_max_threads, omp_thread_num, omp_num_threads, omp_in_parallel;
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

// Where OpenMP ties threads to cores, this process's first thread is tied too, and every thread that it makes would share its core: then
// OpenMP's own threads take a job.
bool ties_threads() {
  const char* bind = std::getenv("OMP_PROC_BIND");
  return (bind && strcasecmp(bind, "false")) || std::getenv("GOMP_CPU_AFFINITY") || std::getenv("KMP_AFFINITY");
}

struct Job {
  int64_t count;
  void (*body)(void*, Ranges&);
  void* context;
  std::mutex mutex = {};
  std::exception_ptr error = nullptr;
};

void run_share(void* data) {
  auto* job = static_cast<Job*>(data);
  const int64_t threads = omp_num_threads(), chunk = (job->count + threads - 1) / threads, begin = omp_thread_num() * chunk;
  OneRange range(begin, begin + chunk < job->count ? begin + chunk : job->count);
  try {
    job->body(job->context, range);
  } catch (...) {  // must not leave the thread
    const std::lock_guard<std::mutex> lock(job->mutex);
    job->error = std::current_exception();
  }
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
  omp_num_threads = reinterpret_cast<Query>(dlsym(handle, "omp_get_num_threads"));
  omp_in_parallel = reinterpret_cast<Query>(dlsym(handle, "omp_in_parallel"));
  if (!parallel || !omp_max_threads || !omp_thread_num || !omp_num_threads || !omp_in_parallel) return library.c_str();
  gomp_parallel = parallel;
  library = search.path;
  return library.c_str();
}

int num_threads() { return gomp_parallel ? omp_max_threads() : 1; }

void parallel_run(int64_t count, int64_t grain, void (*body)(void*, Ranges&), void* context) {
  static const bool tied = ties_threads();
  if (count <= 0) return;
  const int64_t shares = grain > 1 ? (count + grain - 1) / grain : count;
  int64_t threads = gomp_parallel && shares > 1 && !omp_in_parallel() ? omp_max_threads() : 1;
  if (shares < threads) threads = shares;
  if (threads <= 1 || !tied) return pool_run(int(threads), count, grain, body, context);
  Job job{count, body, context};
  gomp_parallel(run_share, &job, unsigned(threads), 0);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace fastmeta
