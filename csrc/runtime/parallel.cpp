#include "runtime/parallel.h"

#include <dlfcn.h>
#include <link.h>

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

struct Job {
  int64_t count, grain;
  void (*body)(void*, int64_t, int64_t);
  void* context;
  std::mutex mutex = {};
  std::exception_ptr error = nullptr;
};

void run_share(void* data) {
  auto* job = static_cast<Job*>(data);
  int64_t threads = omp_num_threads(), chunk = (job->count + threads - 1) / threads;
  int64_t begin = omp_thread_num() * chunk, end = begin + chunk < job->count ? begin + chunk : job->count;
  try {
    if (begin < end) job->body(job->context, begin, end);
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

void parallel_run(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  if (count <= 0) return;
  int64_t threads = gomp_parallel && count > grain && !omp_in_parallel() ? omp_max_threads() : 1;
  int64_t shares = grain > 1 ? (count + grain - 1) / grain : count;
  if (shares < threads) threads = shares;
  if (threads <= 1) return body(context, 0, count);
  Job job{count, grain, body, context};
  gomp_parallel(run_share, &job, unsigned(threads), 0);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace fastmeta
