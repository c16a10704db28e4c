// How the steps of optimisers share out a list of tensors: a thread owns parts, kPart columns (elements of one task's tensor) of one item,
// over all its tasks.
#pragma once
#include "runtime/parallel.h"
#include "runtime/cpu/sizes.h"
#include "runtime/cpu/vector.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

constexpr int64_t kPart = 512;  // columns; measured on an AMD EPYC with AVX-512, 2 cores, 2026-11-25

template <class Item>
int64_t parts_of(const Item& item) {
  return (item.size + kPart - 1) / kPart;
}

// Calls f(item, index of the part in the list, first column, columns) for every part, several on each thread; `grain`: elements that are
// worth another thread.
template <class Step, class F>
void for_each_part(const Step& p, int64_t grain, F&& f) {
  int64_t parts = 0, elements = 0;
  for (int64_t i = 0; i < p.count; i++) {
    parts += parts_of(p.items[i]);
    elements += p.items[i].tasks * p.items[i].size;
  }
  const int64_t mean = elements / (parts + 1) + 1;
  parallel_for(parts, 1 + grain / mean, [&](int64_t begin, int64_t end) {
    int64_t first = 0;  // of the item's parts
    for (int64_t i = 0; i < p.count && first < end; i++) {
      const auto& item = p.items[i];
      const int64_t count = parts_of(item), last = least(end, first + count);
      for (int64_t part = most(begin, first); part < last; part++) {
        const int64_t column = (part - first) * kPart;
        f(item, part, column, least(kPart, item.size - column));
      }
      first += count;
    }
    stream_fence();  // of what f has stored past the caches
  });
}

// Whether x - x is 0 everywhere: neither NaN nor infinite.
template <class R>
bool all_finite(const R* x, int64_t width) {
  int wrong = 0;
#pragma omp simd reduction(| : wrong)
  for (int64_t i = 0; i < width; i++) wrong |= !(x[i] - x[i] == 0);
  return !wrong;
}

}  // namespace
}  // namespace fastmeta::FASTMETA_ISA
