// The step of an optimiser with a state, for a list of tensors in one call: loops around a Formula. A thread owns parts: 512 columns
// (elements of one task's tensor) of one item, over all its tasks, so that what the tasks share is read once and its gradient is
// summed in order without leaving the thread. Each value goes through memory once, forward and backward.
#pragma once
#include <cstring>

#include "inner/cpu/optimiser_formulas.h"
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
      columns_forward<Formula, R>(formula, in, item.spread[rate] == Spread::number, width, out);
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
    columns_back<Formula, R>(formula, in, item.spread[rate] == Spread::number, dout, width, din);
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
