// c_n = mean of the support examples of class n. Forward: a thread owns ranges of 256 features of tasks; it sorts a
// task's S row numbers by class, then sums the rows of a class, a few vectors of features at a time in registers:
// each support row is read once, each prototype written once. Backward: a thread owns ranges of 32 rows of dsupport,
// each of which is one row of dprototypes over its class's count. As the reference has it, a label out of range makes
// its task NaN, an empty class its prototype (in backward, its task).
#include "runtime/arena.h"
#include "runtime/parallel.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/sizes.h"
#include "runtime/cpu/stored.h"
#include "runtime/cpu/vector.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

// Measured on an AMD EPYC with AVX-512, 2 cores, 2026-11-24: the sizes from which another thread pays.
constexpr int64_t kGrain = 1 << 15;             // elements of the support that are worth another thread
constexpr int64_t kShortSum = 32;               // rows summed before they join a total
constexpr int64_t kFeatures = 256, kRows = 32;  // of a thread's range, forward and backward

template <class R>
void fill(R* out, int64_t count, R value) {
  for (int64_t i = 0; i < count; i++) out[i] = value;
}

// members[start[n], start[n + 1]) = rows of class n in order; false where a label is out of range.
bool sort_by_class(int64_t S, int64_t N, const int64_t* labels, int64_t* start, int64_t* members) {
  fill<int64_t>(start, N + 1, 0);
  for (int64_t s = 0; s < S; s++) {
    if (labels[s] < 0 || labels[s] >= N) return false;
    start[labels[s]]++;
  }
  for (int64_t n = 0, sum = 0; n <= N; n++) {
    const int64_t count = n < N ? start[n] : 0;
    start[n] = sum += count;
  }
  for (int64_t s = S; s-- > 0;) members[--start[labels[s]]] = s;
  return true;
}

// out[0, V vectors) = the mean of `count` rows of the support.
template <class R, int V>
FASTMETA_INLINE void mean_of_rows(const R* support, int64_t D, const int64_t* rows, int64_t count, R* out) {
  Vector<R> total[V] = {};
  for (int64_t begin = 0; begin < count; begin += kShortSum) {
    Vector<R> part[V] = {};
    for (int64_t i = begin; i < count && i < begin + kShortSum; i++)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) part[v] += load(support + rows[i] * D + v * kLanes<R>);
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) total[v] += part[v];
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; v++) store(out + v * kLanes<R>, total[v] / R(count));
}

// The same for `width` features.
template <class R>
void class_mean(int64_t width, const R* support, int64_t D, const int64_t* rows, int64_t count, R* out) {
  int64_t d = 0;
  for (; d + 4 * kLanes<R> <= width; d += 4 * kLanes<R>) mean_of_rows<R, 4>(support + d, D, rows, count, out + d);
  for (; d + kLanes<R> <= width; d += kLanes<R>) mean_of_rows<R, 1>(support + d, D, rows, count, out + d);
  for (; d < width; d++) {
    R total = 0;
    for (int64_t begin = 0; begin < count; begin += kShortSum) {
      R part = 0;
      for (int64_t i = begin; i < count && i < begin + kShortSum; i++) part += support[rows[i] * D + d];
      total += part;
    }
    out[d] = total / R(count);
  }
}

// The mean of `width` <= kFeatures features of rows of 16 bits: kShortSum rows are widened at a time.
template <class R>
void narrow_class_mean(int64_t width, const Stored<const R>& support, int64_t first, int64_t D, const int64_t* rows, int64_t count,
                       R* out) {
  R wide[kShortSum * kFeatures];
  fill(out, width, R(0));
  for (int64_t begin = 0; begin < count; begin += kShortSum) {
    const int64_t now = least(kShortSum, count - begin);
    for (int64_t i = 0; i < now; i++) read(support, first + rows[begin + i] * D, width, wide + i * kFeatures);
    for (int64_t i = 1; i < now; i++)
#pragma omp simd
      for (int64_t d = 0; d < width; d++) wide[d] += wide[i * kFeatures + d];
#pragma omp simd
    for (int64_t d = 0; d < width; d++) out[d] += wide[d];
  }
#pragma omp simd
  for (int64_t d = 0; d < width; d++) out[d] /= R(count);
}

template <class R>
FASTMETA_INLINE void scale_row(int64_t width, R scale, const R* from, R* out) {
#pragma omp simd
  for (int64_t d = 0; d < width; d++) out[d] = scale * from[d];
}

// scale[n] = one over the examples of class n; false where a label is out of range or a class has none.
template <class R>
bool scale_of_classes(int64_t S, int64_t N, const int64_t* labels, R* scale) {
  fill(scale, N, R(0));
  for (int64_t s = 0; s < S; s++) {
    if (labels[s] < 0 || labels[s] >= N) return false;
    scale[labels[s]] += 1;
  }
  bool defined = true;
  for (int64_t n = 0; n < N; n++) {
    defined &= scale[n] > 0;
    scale[n] = 1 / scale[n];
  }
  return defined;
}

}  // namespace

template <class R>
void prototypes_fwd(const Prototypes<R>& p) {
  const int64_t ranges = (p.D + kFeatures - 1) / kFeatures;
  parallel_for(p.T * ranges, 1 + kGrain / (p.S * kFeatures + 1), [&](int64_t begin, int64_t end) {
    int64_t* start = static_cast<int64_t*>(thread_arena(size_t(p.N + 1 + p.S) * sizeof(int64_t)));
    int64_t *members = start + p.N + 1, sorted = -1;
    bool in_range = true;
    R made[kFeatures];
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t t = unit / ranges, d = unit % ranges * kFeatures, width = least(kFeatures, p.D - d), first = t * p.S * p.D + d;
      if (t != sorted) in_range = sort_by_class(p.S, p.N, p.labels + t * p.S, start, members);
      sorted = t;
      for (int64_t n = 0; n < p.N; n++) {
        const int64_t row = (t * p.N + n) * p.D + d, *rows = members + start[n], examples = start[n + 1] - start[n];
        R* out = place(p.prototypes, row, made);
        if (p.S == 0 || !in_range) fill(out, width, p.S ? R(__builtin_nan("")) : R(0));
        else if (p.support.narrow()) narrow_class_mean(width, p.support, first, p.D, rows, examples, out);
        else class_mean(width, p.support.numbers + first, p.D, rows, examples, out);
        put(p.prototypes, row, width, out);
      }
    }
  });
}

template <class R>
void prototypes_bwd(const Prototypes<R>& p) {
  const int64_t ranges = (p.S + kRows - 1) / kRows;
  parallel_for(p.T * ranges, 1 + kGrain / (kRows * p.D + 1), [&](int64_t begin, int64_t end) {
    R* scale = static_cast<R*>(thread_arena(size_t(p.N) * sizeof(R)));
    int64_t scaled = -1;
    bool defined = true;
    R made[kFeatures];
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t t = unit / ranges, first = unit % ranges * kRows, last = p.S - first < kRows ? p.S : first + kRows;
      const int64_t* labels = p.labels + t * p.S;
      if (t != scaled) defined = scale_of_classes(p.S, p.N, labels, scale);
      scaled = t;
      for (int64_t s = first; s < last; s++)
        for (int64_t d = 0; d < p.D; d += kFeatures) {
          const int64_t row = (t * p.S + s) * p.D + d, width = least(kFeatures, p.D - d);
          R* out = place(p.dsupport, row, made);
          if (defined) scale_row(width, scale[labels[s]], read(p.dprototypes, (t * p.N + labels[s]) * p.D + d, width, made), out);
          else fill(out, width, p.N ? R(__builtin_nan("")) : R(0));
          put(p.dsupport, row, width, out);
        }
    }
  });
}

template void prototypes_fwd(const Prototypes<float>&);
template void prototypes_fwd(const Prototypes<double>&);
template void prototypes_bwd(const Prototypes<float>&);
template void prototypes_bwd(const Prototypes<double>&);

}  // namespace fastmeta::FASTMETA_ISA
