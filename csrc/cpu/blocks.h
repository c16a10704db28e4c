// Runs a kernel over the blocks of all tasks and gathers the gradients; the same numbers for any number of threads.
// Many tasks: each thread takes whole tasks, a few blocks at a time, while they are in its cache. Few large tasks:
// all threads share `at_once` blocks of one task, first by queries (coefficients and dquery), then by prototypes and
// features (dprototypes). Each element of dprototypes always sums its blocks in order, by segments.
#pragma once
#include "../arena.h"
#include "../parallel.h"
#include "distance.h"

namespace fastmeta::FASTMETA_ISA {

constexpr int64_t kGrain = 1 << 16;  // pairs times features that are worth another thread
constexpr int64_t kSplit = 1 << 18;  // and worth two barriers
constexpr int64_t kSegment = 8;      // blocks summed before they join a total
constexpr int64_t kTile = 8;         // prototypes that pass over a block of queries while it is in cache

struct Tally {
  double loss = 0, dtemperature = 0;
};

// Adds the blocks [start, start + now) of a task, whose coefficients are at `coefficients`, `block_length` apart, to
// the features [d, d + kChunk) of dprototypes [n, n + rows). A task of several segments comes in whole ones.
template <class R>
inline void add_to_dprototypes(const ProtoProblem<R>& p, int64_t task, int64_t start, int64_t now,
                               const R* coefficients, int64_t block_length, int64_t n, int64_t rows, int64_t d) {
  R part[kTile * kChunk], *out = p.dprototypes + (task * p.N + n) * p.D + d;
  const bool segmented = p.Q > kSegment * kBlock;
  for (int64_t i = 0; i < now; i++) {
    const int64_t first = (start + i) * kBlock, count = least(kBlock, p.Q - first);
    const R* block = coefficients + i * block_length + n * kBlock;
    if (!segmented) {
      block_dprototypes(p, task, first, count, block, n, rows, d, out, p.D, first > 0);
      continue;
    }
    block_dprototypes(p, task, first, count, block, n, rows, d, part, kChunk, i % kSegment > 0);
    if (i % kSegment != kSegment - 1 && i + 1 < now) continue;
    for (int64_t row = 0; row < rows; row++)
#pragma omp simd
      for (int64_t j = 0; j < least(kChunk, p.D - d); j++)
        out[row * p.D + j] = part[row * kChunk + j] + (start + i < kSegment ? R(0) : out[row * p.D + j]);
  }
}

// block(task, first query, count, scratch) -> Tally has `arrays` arrays [N, kBlock] of scratch and leaves the
// coefficients in the first one. done(task, Tally) gets a task's total.
template <class R, class Block, class Done>
void for_each_block(const ProtoProblem<R>& p, int arrays, Block&& block, Done&& done) {
  const int64_t blocks = (p.Q + kBlock - 1) / kBlock, block_work = kBlock * p.N * p.D + 1, threads = num_threads();
  const int64_t task_work = blocks * block_work + 1, chunks = (p.D + kChunk - 1) / kChunk;
  const bool split = threads > 1 && task_work >= kSplit && p.T < 4 * threads && p.T % threads != 0;
  int64_t at_once = split ? most(4 * threads, 8 * kSplit / block_work) : 1;
  if (blocks > kSegment) at_once = (at_once + kSegment - 1) / kSegment * kSegment;
  at_once = least(blocks, at_once);
  const int64_t block_length = arrays * p.N * kBlock;
  parallel_for(p.T, split ? p.T : 1 + kGrain / task_work, [&](int64_t task_begin, int64_t task_end) {
    R* scratch = static_cast<R*>(thread_arena(size_t(at_once) * (sizeof(Tally) + size_t(block_length) * sizeof(R))));
    Tally* tallies = reinterpret_cast<Tally*>(scratch + at_once * block_length);
    for (int64_t task = task_begin; task < task_end; task++) {
      Tally total;
      for (int64_t start = 0; start < blocks; start += at_once) {
        const int64_t now = least(at_once, blocks - start);
        parallel_for(now, split ? 1 + kGrain / block_work : now, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; i++) {
            const int64_t first = (start + i) * kBlock, count = least(kBlock, p.Q - first);
            tallies[i] = block(task, first, count, scratch + i * block_length);
            if (p.dquery) block_dquery(p, task, first, count, scratch + i * block_length);
          }
        });
        for (int64_t i = 0; i < now; i++) {
          total.loss += tallies[i].loss;
          total.dtemperature += tallies[i].dtemperature;
        }
        if (!p.dprototypes) continue;
        const int64_t units = chunks * p.N, unit_work = now * kBlock * least(p.D, kChunk) + 1;
        parallel_for(units, split ? 1 + kGrain / unit_work : units, [&](int64_t begin, int64_t end) {
          for (int64_t u = begin, rows; u < end; u += rows) {
            rows = least(least(kTile, end - u), p.N - u % p.N);
            add_to_dprototypes(p, task, start, now, scratch, block_length, u % p.N, rows, u / p.N * kChunk);
          }
        });
      }
      if (p.dprototypes && blocks == 0 && p.N * p.D > 0)
        std::memset(p.dprototypes + task * p.N * p.D, 0, size_t(p.N * p.D) * sizeof(R));
      done(task, total);
    }
  });
}

}  // namespace fastmeta::FASTMETA_ISA
