// Runs a kernel over the blocks of all tasks and gathers the gradients; the same numbers for any number of threads.
// Many tasks: each thread takes whole tasks, while their blocks are in its cache. Few large tasks: all threads share
// `at_once` blocks of one task, first by groups of queries (coefficients and dquery), then by prototypes and features
// (dprototypes). Each element of dprototypes sums its segments in order.
#pragma once
#include <algorithm>

#include "runtime/arena.h"
#include "runtime/parallel.h"
#include "distance/cpu/distance_gradients.h"
#include "distance/cpu/squares.h"
#include "distance/cpu/unit_rows.h"

namespace fastmeta::FASTMETA_ISA {

// Measured on an AMD EPYC with AVX-512, 2 cores, 2026-11-24: the sizes from which another thread pays.
constexpr int64_t kGrain = 1 << 16;     // pairs times features that are worth another thread
constexpr int64_t kSplit = 1 << 18;     // and worth two barriers
constexpr int64_t kInFlight = 1 << 21;  // coefficients that a segment may hold, but for its first block
constexpr int64_t kTurns = 4;           // groups of blocks that each thread has between two barriers, at most (2026-11-30, as kCached)
constexpr int64_t kCached = 1 << 16;    // coefficients and features of queries that stay in cache
constexpr int64_t kRows = 96;           // prototypes of one unit of work on dprototypes

// Hands out consecutive arrays of one buffer; counts bytes where there is none yet.
class Cursor {
 public:
  explicit Cursor(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}
  template <class X>
  X* take(int64_t count) {
    X* found = reinterpret_cast<X*>(base_ + used_);
    used_ += (size_t(count) * sizeof(X) + 63) / 64 * 64;
    return found;
  }
  size_t used() const { return used_; }

 private:
  uintptr_t base_;
  size_t used_ = 0;
};

template <class R>
struct BlockMemory {
  Panels<R> panels;
  Block<R>* blocks;      // [at_once]
  R *columns, *scratch;  // [groups, kGroup, kChunk, kBlock] and [groups, arrays, N, kBlock]

  BlockMemory(Cursor& cursor, const ProtoProblem<R>& p, int64_t at_once, int64_t groups, int arrays) {
    const bool gradients = p.dquery || p.dprototypes, centred = takes_panels(p);
    const int64_t chunks = centred ? feature_chunks(p) : 0;
    panels.centre = cursor.template take<R>(chunks * kBlock);
    panels.values = cursor.template take<R>(chunks * p.N * kBlock);
    panels.radius = cursor.template take<R>(centred ? p.N : 0);
    const bool cosine = p.metric == Metric::cosine;
    const auto room = [&](bool taken, int64_t count) { return taken ? cursor.template take<R>(count) : nullptr; };
    panels.own = room(cosine || p.prototypes.narrow(), p.N * p.D);
    panels.inverse_norms = room(cosine, p.N);
    panels.dprototypes = room(p.dprototypes.narrow(), p.N * p.D);
    columns = cursor.template take<R>(groups * kGroup * kChunk * kBlock);
    scratch = cursor.template take<R>(groups * arrays * p.N * kBlock);
    distances_ = cursor.template take<R>(at_once * p.N * kBlock);
    sums_ = cursor.template take<R>(at_once * p.N);
    dlogit_sums_ = room(p.column_sums, at_once * p.N);
    row_ = p.dprototypes && !one_tile(p) ? (chunks + 1) * kBlock * kBlock : 0;  // one more: not all on the same cache sets
    centred_ = cursor.template take<R>(at_once * row_);
    own_ = room(cosine || p.query.narrow(), at_once * kBlock * p.D);
    dquery_ = room(p.dquery.narrow(), at_once * kBlock * p.D);
    near_ = cursor.template take<Near<R>>(gradients ? at_once * p.N * kBlock : 0);
    blocks = cursor.template take<Block<R>>(at_once);
  }

  void begin(int64_t i, const ProtoProblem<R>& p, int64_t task, int64_t first) const {
    Block<R>& b = blocks[i];
    b.task = task, b.first = first, b.count = least(kBlock, p.Q - first);
    b.distances = distances_ + i * p.N * kBlock, b.sums = sums_ + i * p.N, b.near = near_ + i * p.N * kBlock;
    b.dlogit_sums = dlogit_sums_ ? dlogit_sums_ + i * p.N : nullptr;
    b.centred = centred_ + i * row_;
    const int64_t row = (task * p.Q + first) * p.D;
    b.own = own_ ? own_ + i * kBlock * p.D : nullptr;
    b.rows = b.own ? b.own : p.query.numbers + row;
    if (p.dquery) b.dquery = place(p.dquery, row, dquery_ + i * kBlock * p.D);
    b.near_count = 0, b.loss = b.dtemperature = 0;
  }

 private:
  R *distances_, *sums_, *dlogit_sums_, *centred_, *own_, *dquery_;
  int64_t row_;
  Near<R>* near_;
};

// body(begin, end) over `count` rows of D features: by all threads where they share a task, else by this one.
template <class Body>
void over_rows(int64_t count, int64_t D, bool split, Body&& body) {
  parallel_for(count, split ? 1 + kGrain / (D + 1) : count, std::forward<Body>(body));
}

template <class R>
void prepare_panels(const ProtoProblem<R>& p, int64_t task, Panels<R>& panels, bool split) {
  const int64_t first = task * p.prototypes_stride;
  if (panels.own)
    over_rows(p.N, p.D, split, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; n++) {
        const R* x = read(p.prototypes, first + n * p.D, p.D, panels.own + n * p.D);
        if (panels.inverse_norms) panels.inverse_norms[n] = unit_row(x, p.D, panels.own + n * p.D);
      }
    });
  panels.rows = panels.own ? panels.own : p.prototypes.numbers + first;
  if (p.dprototypes) panels.dprototypes = place(p.dprototypes, task * p.N * p.D, panels.dprototypes);
  if (!takes_panels(p)) return;
  const int64_t chunks = feature_chunks(p);
  parallel_for(chunks, split ? 1 + kGrain / (p.N * kBlock) : chunks,
               [&](int64_t begin, int64_t end) { make_panels(p, panels, begin, end); });
  over_rows(p.N, p.D, split, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) panels.radius[n] = squared_distance(panels.rows + n * p.D, panels.centre, p.D);
  });
}

// The rows of a block that has its own.
template <class R>
void make_rows(const ProtoProblem<R>& p, Block<R>& block) {
  const int64_t first = (block.task * p.Q + block.first) * p.D;
  for (int64_t q = 0; q < block.count; q++) {
    const R* x = read(p.query, first + q * p.D, p.D, block.own + q * p.D);
    if (p.metric == Metric::cosine) block.inverse_norms[q] = unit_row(x, p.D, block.own + q * p.D);
  }
}

// The gradients to unit vectors become those to the queries; what was made elsewhere goes to its place.
template <class R>
void finish_dquery(const ProtoProblem<R>& p, const Block<R>& block) {
  const int64_t first = (block.task * p.Q + block.first) * p.D;
  for (int64_t q = 0; q < block.count && p.metric == Metric::cosine; q++)
    unit_row_gradient(p.query, first + q * p.D, block.own + q * p.D, block.inverse_norms[q], p.D, block.dquery + q * p.D);
  put(p.dquery, first, block.count * p.D, block.dquery);
}

// The same of the prototypes [begin, end) of a task.
template <class R>
void finish_dprototypes(const ProtoProblem<R>& p, int64_t task, const Panels<R>& panels, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end && p.metric == Metric::cosine; n++)
    unit_row_gradient(p.prototypes, task * p.prototypes_stride + n * p.D, panels.own + n * p.D, panels.inverse_norms[n], p.D,
                      panels.dprototypes + n * p.D);
  put(p.dprototypes, (task * p.N + begin) * p.D, (end - begin) * p.D, panels.dprototypes + begin * p.D);
}

template <class R>
void read_distances(const ProtoProblem<R>& p, Block<R>& block) {
  const R* kept = p.kept_distances + block.task * p.Q * p.N;
  if (!p.kept_by_prototypes) return transpose(block.count, p.N, kept + block.first * p.N, p.N, block.distances, kBlock);
  for (int64_t n = 0; n < p.N; n++)
    std::memcpy(block.distances + n * kBlock, kept + n * p.Q + block.first, size_t(block.count) * sizeof(R));
}

// body(Block<R>&, const Panels<R>&, scratch) finds the distances in the block, has `arrays` arrays [N, kBlock] of scratch, and
// leaves the coefficients in their place where gradients are asked for. done(task, loss, dtemperature) gets a task's totals.
template <class R, class Body, class Done>
void for_each_block(const ProtoProblem<R>& p, int arrays, Body&& body, Done&& done) {
  const int64_t count = (p.Q + kBlock - 1) / kBlock, block_work = kBlock * p.N * p.D + 1, threads = threads_now();
  const int64_t task_work = count * block_work + 1, chunks = feature_chunks(p);
  const bool split = threads > 1 && task_work >= kSplit && p.T < 4 * threads && p.T % threads != 0;
  const int64_t fits = most(1, kInFlight / (p.N * kBlock)), segment = least(kSegment, fits);
  // More between two barriers while they are in cache, or fewer than the prototypes, whose gradients come and go each time.
  const int64_t pays = most(kCached / ((p.N + p.D) * kBlock), p.N / kBlock), turn = threads * least(segment, kGroup);
  const int64_t wanted = split ? most(segment, most(turn, least(least(fits, pays), kTurns * turn))) : segment;
  const int64_t at_once = least(count, (wanted + segment - 1) / segment * segment);
  const int64_t group = split ? least(least(kGroup, segment), (at_once + threads - 1) / threads) : least(kGroup, segment);
  const int64_t groups = split ? (at_once + group - 1) / group : 1;
  parallel_for(p.T, split ? p.T : 1 + kGrain / task_work, [&](int64_t task_begin, int64_t task_end) {
    Cursor counting(nullptr);
    BlockMemory<R>(counting, p, at_once, groups, arrays);
    Cursor cursor(thread_arena(counting.used()));
    BlockMemory<R> memory(cursor, p, at_once, groups, arrays);
    for (int64_t task = task_begin; task < task_end; task++) {
      double loss = 0, dtemperature = 0;
      prepare_panels(p, task, memory.panels, split);
      if (p.column_sums) std::fill_n(p.column_sums + task * p.N, p.N, 0.0);
      for (int64_t start = 0; start < count; start += at_once) {
        const int64_t now = least(at_once, count - start), now_groups = (now + group - 1) / group;
        parallel_for(now_groups, split ? 1 : now_groups, [&](int64_t begin, int64_t end) {
          for (int64_t g = begin; g < end; g++) {
            const int64_t first = g * group, size = least(group, now - first), slot = split ? g : 0;
            for (int64_t i = first; i < first + size; i++) memory.begin(i, p, task, (start + i) * kBlock);
            Block<R>* blocks = memory.blocks + first;
            for (int64_t i = 0; i < size && blocks[i].own; i++) make_rows(p, blocks[i]);
            if (!p.kept_distances) block_distances(p, memory.panels, blocks, size, memory.columns + slot * kGroup * kChunk * kBlock);
            for (int64_t i = 0; i < size; i++) {
              const int64_t row = (task * p.Q + blocks[i].first) * p.N;
              if (p.kept_distances) {
                read_distances(p, blocks[i]);
                fill_lanes(p, blocks[i]);
              }
              if (p.distances) store_rows(p.N, blocks[i].count, blocks[i].distances, p.distances + row);
            }
            for (int64_t i = 0; i < size; i++) body(blocks[i], memory.panels, memory.scratch + slot * arrays * p.N * kBlock);
            for (int64_t i = 0; i < size && p.dprototypes && !one_tile(p); i++) centre_queries(p, memory.panels, blocks[i]);
            if (p.dquery) block_dquery(p, memory.panels, blocks, size);
            for (int64_t i = 0; i < size && p.dquery && blocks[i].own; i++) finish_dquery(p, blocks[i]);
          }
        });
        for (int64_t i = 0; i < now; i++) loss += memory.blocks[i].loss, dtemperature += memory.blocks[i].dtemperature;
        for (int64_t i = 0; i < now && p.column_sums; i++)
          for (int64_t n = 0; n < p.N; n++) p.column_sums[task * p.N + n] += double(memory.blocks[i].dlogit_sums[n]);
        if (!p.dprototypes) continue;
        const int64_t wide = wide_chunks(p), strips = wide / kWide + chunks - wide, parts = (p.N + kRows - 1) / kRows;
        parallel_for(strips * parts, split ? 1 + kGrain / (now * kBlock * kBlock * least(kRows, p.N)) : strips * parts,
                     [&](int64_t begin, int64_t end) {
                       for (int64_t u = begin; u < end; u++) {
                         const int64_t n = u / strips * kRows, strip = u % strips;  // they pass while these coefficients are in cache
                         const int64_t chunk = strip < wide / kWide ? strip * kWide : strip + wide - wide / kWide;
                         for (int64_t i = 0; i < now; i += segment)
                           block_dprototypes(p, memory.panels, memory.blocks + i, least(segment, now - i), n, least(n + kRows, p.N), chunk,
                                             chunk < wide ? chunk + kWide : chunk + 1, start + i > 0);
                       }
                     });
      }
      if (p.dprototypes && count == 0 && p.N * p.D > 0) std::memset(memory.panels.dprototypes, 0, size_t(p.N * p.D) * sizeof(R));
      if (p.dprototypes && memory.panels.own)
        over_rows(p.N, p.D, split, [&](int64_t begin, int64_t end) { finish_dprototypes(p, task, memory.panels, begin, end); });
      done(task, loss, dtemperature);
    }
  });
}

// Compiled once, in distance.cpp: they expand to many tiles.
#define FASTMETA_DISTANCE(EXTERN, R)                                                                                                       \
  EXTERN template void prepare_panels<R>(const ProtoProblem<R>&, int64_t, Panels<R>&, bool);                                               \
  EXTERN template void make_rows<R>(const ProtoProblem<R>&, Block<R>&);                                                                    \
  EXTERN template void finish_dquery<R>(const ProtoProblem<R>&, const Block<R>&);                                                          \
  EXTERN template void finish_dprototypes<R>(const ProtoProblem<R>&, int64_t, const Panels<R>&, int64_t, int64_t);                         \
  EXTERN template void block_distances<R>(const ProtoProblem<R>&, const Panels<R>&, Block<R>*, int64_t, R*);                               \
  EXTERN template void centre_queries<R>(const ProtoProblem<R>&, const Panels<R>&, const Block<R>&);                                       \
  EXTERN template void block_dquery<R>(const ProtoProblem<R>&, const Panels<R>&, const Block<R>*, int64_t);                                \
  EXTERN template void block_dprototypes<R>(const ProtoProblem<R>&, const Panels<R>&, const Block<R>*, int64_t, int64_t, int64_t, int64_t, \
                                            int64_t, bool);
FASTMETA_DISTANCE(extern, float)
FASTMETA_DISTANCE(extern, double)

}  // namespace fastmeta::FASTMETA_ISA
