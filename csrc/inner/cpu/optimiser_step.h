// The step of an optimiser with a state, for a list of tensors in one call: loops around a Formula. A thread owns parts: 512 columns
// (elements of one task's tensor) of one item, over all its tasks, so that what the tasks share is read once and its gradient is
// summed in order without leaving the thread. Each value goes through memory once, forward and backward.
#pragma once
#include <cmath>
#include <cstring>

#include "inner/optimiser_step.h"
#include "inner/cpu/step_parts.h"
#include "runtime/arena.h"
#include "runtime/cpu/kernels.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements that are worth another thread

// Where an operand's part begins.
template <class R>
FASTMETA_INLINE R* at(R* x, Spread spread, int64_t task, int64_t size, int64_t column) {
  return !x || spread == Spread::number ? x : x + column + (spread == Spread::own ? task * size : 0);
}

// Calls f(i, load, save) for every column: vectors at a time, the last ones as numbers. load(from, whether it is one number for all).
template <class R, class F>
FASTMETA_INLINE void for_each_column(int64_t width, F&& f) {
  constexpr int64_t lanes = kLanes<R>;
  const int64_t whole = width / lanes * lanes;
  const auto load_vector = [](const R* from, bool one) __attribute__((always_inline)) { return one ? Vector<R>{} + *from : load(from); };
  for (int64_t i = 0; i < whole; i += lanes) f(i, load_vector, [](R* to, Vector<R> x) __attribute__((always_inline)) { store(to, x); });
  for (int64_t i = whole; i < width; i++)
    f(
        i, [](const R* from, bool) __attribute__((always_inline)) { return *from; },
        [](R* to, R x) __attribute__((always_inline)) { *to = x; });
}

// The square root of a number or of a vector.
FASTMETA_INLINE float root_of(float x) { return std::sqrt(x); }
FASTMETA_INLINE double root_of(double x) { return std::sqrt(x); }
template <class V>
FASTMETA_INLINE V root_of(V x) {
#if defined(__clang__)
  return __builtin_elementwise_sqrt(x);
#else
  for (size_t i = 0; i < sizeof x / sizeof x[0]; i++) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

template <class Formula, class R>
void step_forward(const OptimiserStep<R>& p) {
  constexpr int S = Formula::state, rate = 2 + S;
  const Formula formula(p);
  for_each_part(p, kGrain, [&](const typename OptimiserStep<R>::Item& item, int64_t, int64_t column, int64_t width) {
    for (int64_t t = 0; t < item.tasks; t++) {
      const R* in[3 + S];
      R* out[1 + S];
      for (int k = 0; k < 3 + S; k++) in[k] = at(item.in[k], item.spread[k], t, item.size, column);
      for (int k = 0; k < 1 + S; k++) out[k] = at(item.out[k], Spread::own, t, item.size, column);
      const bool seen = item.spread[rate] == Spread::shared && t > 0;
      if (item.spread[rate] != Spread::number && !seen && !all_finite(in[rate], width))
        __atomic_store_n(p.not_finite, true, __ATOMIC_RELAXED);
      const bool one = item.spread[rate] == Spread::number;
      for_each_column<R>(width, [&](int64_t i, auto load, auto save) __attribute__((always_inline)) {
        decltype(load(in[0], false)) x[3 + S], y[1 + S];
        for (int k = 0; k < 2 + S; k++) x[k] = load(in[k] + i, false);
        x[rate] = load(in[rate] + (one ? 0 : i), one);
        formula.forward(x, y);
        for (int k = 0; k < 1 + S; k++) save(out[k] + i, y[k]);
      });
    }
  });
}

// One part of an item's gradients; returns its part of that of a rate that is one number.
template <class Formula, class R>
double part_back(const Formula& formula, const typename OptimiserStep<R>::Item& item, int64_t column, int64_t width) {
  constexpr int S = Formula::state, rate = 2 + S;
  R here[3 + S][kPart];       // gradients of one task that are not its own, or not asked for
  double sums[3 + S][kPart];  // over the tasks
  double number = 0;
  for (int k = 0; k < 3 + S; k++)
    if (item.din[k] && item.spread[k] == Spread::shared) std::memset(sums[k], 0, size_t(width) * sizeof(double));
  for (int64_t t = 0; t < item.tasks; t++) {
    const R *in[3 + S], *dout[1 + S];
    R* din[3 + S];
    for (int k = 0; k < 3 + S; k++) {
      in[k] = at(item.in[k], item.spread[k], t, item.size, column);
      din[k] = item.din[k] && item.spread[k] == Spread::own ? at(item.din[k], Spread::own, t, item.size, column) : here[k];
    }
    for (int k = 0; k < 1 + S; k++) dout[k] = at(item.dout[k], Spread::own, t, item.size, column);
    const bool one = item.spread[rate] == Spread::number;
    for_each_column<R>(width, [&](int64_t i, auto load, auto save) __attribute__((always_inline)) {
      decltype(load(in[0], false)) x[3 + S], d[1 + S], dx[3 + S];
      for (int k = 0; k < 2 + S; k++) x[k] = load(in[k] + i, false);
      x[rate] = load(in[rate] + (one ? 0 : i), one);
      for (int k = 0; k < 1 + S; k++) d[k] = load(dout[k] + i, false);
      formula.backward(x, d, dx);
      for (int k = 0; k < 3 + S; k++) save(din[k] + i, dx[k]);
    });
    for (int k = 0; k < 3 + S; k++)
      if (item.din[k] && item.spread[k] == Spread::shared)
#pragma omp simd
        for (int64_t i = 0; i < width; i++) sums[k][i] += double(here[k][i]);
    if (item.spread[rate] == Spread::number)
#pragma omp simd reduction(+ : number)
      for (int64_t i = 0; i < width; i++) number += double(here[rate][i]);
  }
  for (int k = 0; k < 3 + S; k++)
    if (item.din[k] && item.spread[k] == Spread::shared)
      for (int64_t i = 0; i < width; i++) item.din[k][column + i] = R(sums[k][i]);
  return number;
}

template <class Formula, class R>
void step_backward(const OptimiserStep<R>& p) {
  constexpr int rate = 2 + Formula::state;
  const Formula formula(p);
  int64_t parts = 0;
  for (int64_t i = 0; i < p.count; i++) parts += parts_of(p.items[i]);
  double* numbers = static_cast<double*>(thread_arena(size_t(parts) * sizeof(double)));
  for_each_part(p, kGrain, [&](const typename OptimiserStep<R>::Item& item, int64_t part, int64_t column, int64_t width) {
    numbers[part] = part_back<Formula, R>(formula, item, column, width);
  });
  double sum = 0;
  for (int64_t i = 0, part = 0; i < p.count; i++) {
    for (const int64_t end = part + parts_of(p.items[i]); part < end; part++) sum += numbers[part];
    if (p.one_rate) continue;
    if (p.items[i].spread[rate] == Spread::number && p.items[i].din[rate]) *p.items[i].din[rate] = R(sum);
    sum = 0;
  }
  if (p.one_rate && p.count && p.items[0].din[rate]) *p.items[0].din[rate] = R(sum);
}

}  // namespace
}  // namespace fastmeta::FASTMETA_ISA
