// Small kernels, most with a planted fault, for the tests of the emulator and its checker. Each runs in blocks of 64 threads with
// 64 floats of dynamic shared memory, an input and a scratch buffer of 64 floats, and an output for each thread.
#include <exception>
#include <string>
#include <vector>

#include "emulator/checker.h"
#include "emulator/emulator.h"
#include "emulator/requests.h"
#include "runtime/cuda/launch.h"

namespace {

using namespace fastmeta;

constexpr int kThreads = 64;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Buffers {
  float *in, *scratch, *out;
};

struct Row {
  float value[kThreads];
};

// A thread's number in its block, the block's dynamic shared memory and the thread's output come with each.
#define KERNEL(NAME) void NAME(const Buffers& c, int i, float* s, float* out)

KERNEL(right) {
  s[i] = c.in[i];
  __syncthreads();
  *out = s[63 - i];
  __syncthreads();
  s[63 - i] = 0;
}

KERNEL(no_barrier) {
  s[i] = c.in[i];
  *out = s[63 - i];
}

KERNEL(no_second_barrier) {
  s[i] = c.in[i];
  __syncthreads();
  *out = s[63 - i];
  s[i] = 0;
}

KERNEL(read_by_many_then_written) {  // by one of them
  if (i == 0) s[0] = 1;
  __syncthreads();
  *out = s[0];
  if (i == 63) s[0] = 2;
}

KERNEL(two_writers) {
  s[0] = c.in[i];
  __syncthreads();
  *out = s[0];
}

KERNEL(with_syncwarp) {
  s[i] = c.in[i];
  __syncwarp();
  *out = s[i ^ 1];
  __syncwarp();
  s[i ^ 1] = 0;
}

KERNEL(no_syncwarp) {
  s[i] = c.in[i];
  *out = s[i ^ 1];
}

KERNEL(no_second_syncwarp) {
  s[i] = c.in[i];
  __syncwarp();
  *out = s[i ^ 1];
  s[i] = 0;
}

KERNEL(shuffle_for_a_barrier) {
  s[i] = c.in[i];
  *out = __shfl_xor_sync(kAllLanes, 1.0f, 1) + s[i ^ 1];
}

KERNEL(syncwarp_between_warps) {
  s[i] = c.in[i];
  __syncwarp();
  *out = s[i ^ 32];
}

KERNEL(blocks_write_one_place) {
  c.scratch[i] = 0;
  *out = 0;
}

KERNEL(blocks_read_what_another_writes) {
  if (blockIdx.x == 0 && i == 0) c.scratch[0] = 1;
  __syncthreads();
  *out = c.scratch[0];
}

KERNEL(a_block_writes_what_another_has_read) {
  *out = c.scratch[0];
  __syncthreads();
  if (blockIdx.x == 1 && i == 63) c.scratch[0] = 1;
}

KERNEL(uninitialised_dynamic) {
  if (i) s[i] = 1;
  __syncthreads();
  *out = s[63 - i];
}

KERNEL(uninitialised_static) {
  FASTMETA_SHARED(Row, row);
  if (i != 5) row.value[i] = 1;
  *out = row.value[i];
}

KERNEL(uninitialised_scratch) { *out = c.scratch[i]; }

KERNEL(reads_beyond_input) { *out = c.in[i + 1]; }

KERNEL(writes_beyond_output) { out[i == 63 ? 1 : 0] = *out = 0; }

KERNEL(reads_beyond_dynamic) {
  s[i] = 1;
  *out = s[i] + s[i + 1 - i % 2];
  if (i == 63) *out = s[i + 1];
}

KERNEL(writes_beyond_static) {
  FASTMETA_SHARED(Row, row);
  float* value = row.value + i;
  if (i == 63) value[1] = 1;
  *out = 1;
}

KERNEL(writes_input) { *out = c.in[i] = 1; }

KERNEL(leaves_an_output) {
  if (i != 7) *out = 1;
}

KERNEL(half_the_block_at_a_barrier) {
  *out = 1;
  if (i < 32) __syncthreads();
}

KERNEL(two_barriers) {
  *out = 1;
  if (i < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

KERNEL(half_a_warp_shuffles) { *out = i % 32 < 16 ? __shfl_xor_sync(kAllLanes, 1.0f, 1) : 1; }

KERNEL(a_barrier_against_a_shuffle) {
  *out = 1;
  if (i < 40) __syncthreads();
  else __syncwarp();
}

KERNEL(partial_mask) { *out = __shfl_xor_sync(0xffffu, 1.0f, 1); }

KERNEL(much_shared_memory) {
  struct Large {
    float value[12500];
  };
  FASTMETA_SHARED(Large, large);
  *out = large.value[i] = 1;
}

KERNEL(misaligned) {
  s[i] = 1;
  __syncthreads();
  *out = i == 9 ? *reinterpret_cast<const float*>(reinterpret_cast<const char*>(s) + 2) : 1;
}

KERNEL(whole_rows) {  // a warp's lanes beside each other, in both memories
  s[i] = c.in[i];
  __syncthreads();
  *out = s[i];
}

KERNEL(uncoalesced_loop) {  // a row of 8 for each of 8 lanes
  float sum = 0;
  for (int k = 0; k < 8; k++) sum += c.in[i % 8 * 8 + k];
  *out = sum;
}

struct Square {
  float value[kThreads][32];
};

KERNEL(bank_conflicts) {  // down a column of 32
  FASTMETA_SHARED(Square, square);
  for (int k = 0; k < 32; k++) square.value[i][(i + k) % 32] = 1;
  __syncthreads();
  *out = square.value[i][0];
}

struct alignas(16) Four {
  float value[4];
};

KERNEL(four_at_a_time) {  // 16 lanes load 16 bytes each: a wavefront of shared memory serves 8
  Four* rows = reinterpret_cast<Four*>(s);
  if (i < 16) rows[i] = reinterpret_cast<const Four*>(c.in)[i];
  __syncthreads();
  *out = s[i];
}

template <void (*body)(const Buffers&, int, float*, float*)>
__global__ void kernel(Buffers c) {
  FASTMETA_DYNAMIC_SHARED(memory);
  body(c, int(threadIdx.x), reinterpret_cast<float*>(memory), c.out + blockIdx.x * kThreads + threadIdx.x);
}

struct Planted {
  std::string name;
  void (*kernel)(Buffers);
};
#define PLANTED(NAME) {#NAME, kernel<NAME>}
const Planted all[] = {
    PLANTED(right), PLANTED(no_barrier), PLANTED(no_second_barrier), PLANTED(read_by_many_then_written), PLANTED(two_writers),
    PLANTED(with_syncwarp), PLANTED(no_syncwarp), PLANTED(no_second_syncwarp), PLANTED(shuffle_for_a_barrier),
    PLANTED(syncwarp_between_warps), PLANTED(blocks_write_one_place), PLANTED(blocks_read_what_another_writes),
    PLANTED(a_block_writes_what_another_has_read), PLANTED(uninitialised_dynamic), PLANTED(uninitialised_static),
    PLANTED(uninitialised_scratch), PLANTED(reads_beyond_input), PLANTED(writes_beyond_output), PLANTED(reads_beyond_dynamic),
    PLANTED(writes_beyond_static), PLANTED(writes_input), PLANTED(leaves_an_output), PLANTED(half_the_block_at_a_barrier),
    PLANTED(two_barriers), PLANTED(half_a_warp_shuffles), PLANTED(a_barrier_against_a_shuffle), PLANTED(partial_mask),
    PLANTED(much_shared_memory), PLANTED(misaligned), PLANTED(whole_rows), PLANTED(uncoalesced_loop), PLANTED(bank_conflicts),
    PLANTED(four_at_a_time),
};

std::string found;

// "" where the kernel keeps the rules, else what was found.
std::string run(const Planted& planted, unsigned blocks) {
  std::vector<float> in(kThreads, 1), scratch(kThreads, 1), out(blocks * kThreads);
  emulation::Checker& checker = emulation::checker;
  checker.clear();
  checker.add(in.data(), kThreads * 4, 4, "in", emulation::Kind::input);
  checker.add(scratch.data(), kThreads * 4, 4, "scratch", emulation::Kind::scratch);
  checker.add(out.data(), int64_t(out.size()) * 4, 4, "out", emulation::Kind::output);
  try {
    const char* error = cuda::launch(planted.kernel, blocks, kThreads, {kThreads * sizeof(float)}, emulation::stream(),
                                     Buffers{in.data(), scratch.data(), out.data()});
    if (error) return error;
    emulation::finish();
    return "";
  } catch (const std::exception& fault) {
    return fault.what();
  }
}

}  // namespace

// order: 0 forward, 1 reverse, 2 random.
extern "C" __attribute__((visibility("default"))) const char* run_planted(const char* name, unsigned blocks, int order, uint64_t seed) {
  emulation::set_order(emulation::Order(order), seed);
  found = "no such kernel";
  for (const Planted& planted : all)
    if (planted.name == name) found = run(planted, blocks);
  return found.c_str();
}

// What the kernels did since counting began, as the module tells it.
extern "C" __attribute__((visibility("default"))) void count_requests(bool counting) {
  emulation::requests.clear();
  emulation::requests.counting = counting;
}
extern "C" __attribute__((visibility("default"))) const char* requests() {
  found = emulation::requests.table();
  return found.c_str();
}
