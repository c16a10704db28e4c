#include "emulator/emulator.h"

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "emulator/checker.h"
#include "emulator/fibers.h"
#include "emulator/requests.h"
#include "emulator/shared_array.h"
#include "emulator/sites.h"

namespace fastmeta::emulation {
namespace {

constexpr unsigned kWarp = 32, kAllLanes = 0xffffffffu, kMostThreads = 1024;
constexpr size_t kSharedWithoutOptIn = 48 * 1024;

enum class State { ready, at_warp, at_block, ended };

struct Thread {
  State state;
  Site site;
  bool orders_memory;       // the barrier at `site`
  unsigned partner;         // whose value a shuffle brings
  uint64_t sent, received;  // by it
};

class Emulator {
 public:
  bool run(const Launch& launch);
  void require_no_findings();
  void fail(const std::string& what);  // in a thread
  void wait(State state, Site site, bool orders_memory);
  void* static_shared(const Declaration& declared);
  uint64_t shuffle(uint64_t bits, unsigned lane, Site site);
  void access(const void* address, size_t bytes, bool writes, const void* instruction);

  Index blocks, threads_per_block, block{0};
  std::vector<Device> devices{Device{}};
  size_t device = 0;  // the current one
  Order order = Order::forward;
  uint64_t seed = 0;
  int64_t launches = 0, opt_ins = 0;
  bool runs = true;
  std::map<std::pair<size_t, const void*>, size_t> opted_in;  // by device and kernel
  Fibers fibers;
  std::vector<SharedArray> shared;  // the dynamic one first

 private:
  void run_block();
  void run_warp(unsigned warp);
  bool release_warp(unsigned warp);
  void release_block();
  std::vector<unsigned> in_order(unsigned count);
  std::string whereabouts(unsigned first, unsigned count) const;
  [[noreturn]] void stop(const std::string& what);

  std::vector<Thread> threads_;
  std::vector<uint16_t> warp_clocks_;
  uint32_t interval_ = 0;
  size_t most_shared_ = 0;  // static and dynamic
  bool running_ = false;    // a thread of the kernel
  std::string failure_;     // of the thread that ran last
  std::mt19937_64 random_;
};

Emulator emulator;

bool Emulator::run(const Launch& launch) {
  const unsigned count = launch.threads.x;
  const auto opted = opted_in.find({device, launch.kernel});
  const size_t dynamic = opted == opted_in.end() ? kSharedWithoutOptIn : std::max(opted->second, kSharedWithoutOptIn);
  most_shared_ = opted == opted_in.end() ? kSharedWithoutOptIn : size_t(devices[device].shared_per_block);
  if (!launch.blocks.x || !count || count > kMostThreads || launch.shared_bytes > std::min(dynamic, most_shared_)) return false;
  if (launch.stream != stream()) throw Fault("a launch must go to the caller's stream, got another");
  if (count % kWarp) throw Fault("the emulator takes blocks of whole warps, got " + std::to_string(count) + " threads");
  launches++;
  if (!runs) return true;
  blocks = launch.blocks;
  threads_per_block = launch.threads;
  random_.seed(seed);
  checker.begin_launch(++interval_);
  shared.clear();
  shared.emplace_back(nullptr, launch.shared_bytes);
  checker.add(shared[0].memory.get(), int64_t(launch.shared_bytes), 4, "dynamic shared memory", Kind::shared);
  fibers.grow(count);
  fibers.set_body(launch.thread);
  requests.begin_launch(site_of(launch.kernel));
  for (block.x = 0; block.x < blocks.x; block.x++) run_block();
  require_no_findings();
  return true;
}

void Emulator::require_no_findings() {
  const std::string found = checker.findings();
  if (!found.empty()) throw Fault("the kernel must keep the rules of memory, got" + found);
}

void Emulator::run_block() {
  threads_.assign(threads_per_block.x, Thread{});
  warp_clocks_.assign(threads_per_block.x / kWarp, 0);
  for (SharedArray& array : shared) array.poison();
  checker.begin_block(++interval_);
  do {
    for (unsigned warp : in_order(unsigned(warp_clocks_.size()))) run_warp(warp);
    release_block();
  } while (threads_[0].state != State::ended);
}

void Emulator::run_warp(unsigned warp) {
  do {
    for (unsigned lane : in_order(kWarp)) {
      const unsigned thread = warp * kWarp + lane;
      if (threads_[thread].state != State::ready) continue;
      running_ = true;
      fibers.resume(thread);
      running_ = false;
      if (!failure_.empty()) stop(std::exchange(failure_, {}));
      if (fibers.ended(thread)) threads_[thread].state = State::ended;
    }
    requests.warp_meets();
  } while (release_warp(warp));
}

// Lets the warp go on where all its lanes have come to one shuffle or __syncwarp.
bool Emulator::release_warp(unsigned warp) {
  const unsigned first = warp * kWarp;
  unsigned waiting = 0, together = 0;
  for (unsigned i = first; i < first + kWarp; i++) {
    waiting += threads_[i].state == State::at_warp;
    together += threads_[i].state == State::at_warp && threads_[i].site == threads_[first].site;
  }
  if (!waiting) return false;
  if (together != kWarp) stop("all lanes of a warp must come to the same shuffle or __syncwarp, got" + whereabouts(first, kWarp));
  if (threads_[first].orders_memory) warp_clocks_[warp]++;
  for (unsigned i = first; i < first + kWarp; i++) {
    threads_[i].state = State::ready;
    threads_[i].received = threads_[threads_[i].partner].sent;
  }
  return true;
}

// Lets the block go on where all its threads have come to one __syncthreads.
void Emulator::release_block() {
  const Thread& first = threads_[0];
  for (const Thread& thread : threads_)
    if (thread.state != first.state || (thread.state != State::ended && thread.site != first.site))
      stop("all threads of a block must come to the same __syncthreads, got" + whereabouts(0, unsigned(threads_.size())));
  interval_++;
  if (first.state == State::ended) return;
  for (Thread& thread : threads_) thread.state = State::ready;
}

void Emulator::stop(const std::string& what) {
  fibers.abandon();
  throw Fault(what + checker.findings());
}

void Emulator::fail(const std::string& what) {
  failure_ = what;
  fibers.pause();
}

std::vector<unsigned> Emulator::in_order(unsigned count) {
  std::vector<unsigned> found(count);
  for (unsigned i = 0; i < count; i++) found[i] = order == Order::reverse ? count - 1 - i : i;
  if (order == Order::random) std::shuffle(found.begin(), found.end(), random_);
  return found;
}

// "\n  3 threads at file:line" for each place where some wait.
std::string Emulator::whereabouts(unsigned first, unsigned count) const {
  std::map<std::string, int> places;
  for (unsigned i = first; i < first + count; i++) {
    const Thread& thread = threads_[i];
    const std::string file = thread.site.file;
    places[thread.state == State::ended ? "the end" : file.substr(file.rfind('/') + 1) + ":" + std::to_string(thread.site.line)]++;
  }
  std::string text;
  for (const auto& [place, threads] : places) text += "\n  " + std::to_string(threads) + " threads at " + place;
  return text;
}

void Emulator::wait(State state, Site site, bool orders_memory) {
  Thread& thread = threads_[fibers.current()];
  thread.state = state;
  thread.site = site;
  thread.orders_memory = orders_memory;
  fibers.pause();
}

uint64_t Emulator::shuffle(uint64_t bits, unsigned lane, Site site) {
  const unsigned me = fibers.current();
  threads_[me].sent = bits;
  threads_[me].partner = me / kWarp * kWarp + lane % kWarp;
  wait(State::at_warp, site, false);
  return threads_[me].received;
}

void* Emulator::static_shared(const Declaration& declared) {
  for (const SharedArray& array : shared)
    if (array.place == declared.place) return array.memory.get();
  shared.emplace_back(declared.place, declared.bytes);
  size_t all = 0;
  for (const SharedArray& array : shared) all += array.bytes;
  if (all > most_shared_) fail("shared memory must hold the block's arrays, got " + std::to_string(all) + " bytes");
  void* memory = shared.back().memory.get();
  checker.add(memory, int64_t(declared.bytes), int(std::min<size_t>(declared.alignment, 4)), declared.name, Kind::shared);
  return memory;
}

void Emulator::access(const void* address, size_t bytes, bool writes, const void* instruction) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (!running_ || fibers.on_stack(begin)) return;
  const unsigned thread = fibers.current();
  checker.access(begin, bytes, writes, {interval_, warp_clocks_[thread / kWarp], uint16_t(thread)}, instruction);
}

void require_whole_warp(unsigned mask) {
  if (mask != kAllLanes) emulator.fail("the emulator knows shuffles and __syncwarp of whole warps, got another mask");
}

}  // namespace

Index thread_index() { return Index(emulator.fibers.current()); }
Index block_index() { return emulator.block; }
Index block_size() { return emulator.threads_per_block; }
Index grid_size() { return emulator.blocks; }
void sync_block(Site site) { emulator.wait(State::at_block, site, true); }
void sync_warp(unsigned mask, Site site) {
  require_whole_warp(mask);
  emulator.wait(State::at_warp, site, true);
}
uint64_t shuffle(unsigned mask, uint64_t bits, unsigned lane, Site site) {
  require_whole_warp(mask);
  return emulator.shuffle(bits, lane, site);
}
unsigned char* dynamic_shared() { return emulator.shared[0].memory.get(); }
void* static_shared(const Declaration& array) { return emulator.static_shared(array); }
const Device& device() { return emulator.devices[emulator.device]; }
int device_index() { return int(emulator.device); }
void set_device(const Device& device) {
  const auto same = [&](const Device& other) { return !std::memcmp(&other, &device, sizeof(Device)); };
  const auto found = std::find_if(emulator.devices.begin(), emulator.devices.end(), same);
  emulator.device = size_t(found - emulator.devices.begin());
  if (found == emulator.devices.end()) emulator.devices.push_back(device);
}
void set_order(Order order, uint64_t seed) {
  emulator.order = order;
  emulator.seed = seed;
}
bool opt_in(const void* kernel, size_t shared_bytes) {
  if (shared_bytes > size_t(device().shared_per_block)) return false;
  emulator.opted_in[{emulator.device, kernel}] = shared_bytes;
  emulator.opt_ins++;
  return true;
}
bool run(const Launch& launch) { return emulator.run(launch); }
void set_runs(bool runs) { emulator.runs = runs; }
void finish() {
  if (!emulator.runs) return;
  checker.end();
  emulator.require_no_findings();
}
void* stream() { return &emulator; }
int64_t launches() { return emulator.launches; }
int64_t opt_ins() { return emulator.opt_ins; }
void report_access(const void* address, size_t bytes, bool writes, const void* instruction) {
  emulator.access(address, bytes, writes, instruction);
}

}  // namespace fastmeta::emulation
