// theta' = theta - alpha g for a list of tensors in one call. A thread owns parts: 512 columns (elements of one
// task's tensor) of one item, over all its tasks, so that a shared param or rate is read once and its gradient is
// summed in order without leaving the thread. Forward moves 3 values an element (2 where the param is shared);
// backward reads dout once, and g where a rate wants its gradient, and writes dgrad. Results of more than kStreamed bytes go
// past the caches.
#include "inner/cpu/step_parts.h"
#include "runtime/arena.h"
#include "runtime/cpu/kernels.h"
#include "runtime/cpu/stored.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

// Measured on an AMD EPYC with AVX-512, 2 cores, 2026-11-25: what one thread takes, and from where results go past the caches.
constexpr int64_t kGrain = 1 << 15;     // elements that are worth another thread
constexpr int64_t kStreamed = 8 << 20;  // bytes of results

// out[i] = f(i, load), vectors at a time: `load` gives a vector or, for the last ones, a number.
template <class R, class F>
FASTMETA_INLINE void write(R* out, int64_t width, bool streams, F&& f) {
  constexpr int64_t lanes = kLanes<R>;
  const int64_t whole = width / lanes * lanes;
  const auto vector = [](const R* x) __attribute__((always_inline)) { return load(x); };
  if (streams && reinterpret_cast<uintptr_t>(out) % kVectorBytes == 0)
    for (int64_t i = 0; i < whole; i += lanes) stream(out + i, f(i, vector));
  else
    for (int64_t i = 0; i < whole; i += lanes) store(out + i, f(i, vector));
  for (int64_t i = whole; i < width; i++) out[i] = f(i, [](const R* x) __attribute__((always_inline)) { return *x; });
}

// A product that is rounded by itself, not fused into the difference: theta - alpha g has the bits of PyTorch's two operations.
template <class V>
FASTMETA_INLINE V rounded(V product) {
#if defined(__x86_64__)
  asm("" : "+x"(product));
#else
  asm("" : "+w"(product));
#endif
  return product;
}

template <class R>
bool outgrows_caches(const SgdStep<R>& p) {
  int64_t elements = 0;
  for (int64_t i = 0; i < p.count; i++) elements += p.items[i].tasks * p.items[i].size;
  return elements * int64_t(sizeof(R)) > kStreamed && !p.items[0].grad.narrow();
}

// Calls f(first index of the part in a [tasks, size] tensor, and in what rate points to) for each task.
template <class R, class F>
FASTMETA_INLINE void for_each_task(const typename SgdStep<R>::Item& item, int64_t column, F&& f) {
  for (int64_t t = 0; t < item.tasks; t++) {
    const int64_t at = t * item.size + column;
    f(at, item.rate_kind == 2 ? at : item.rate_kind == 1 ? column : 0);
  }
}

template <class R>
void put_sums(const Stored<R>& out, int64_t first, int64_t width, const double* sums, R* room) {
  R* made = place(out, first, room);
  for (int64_t i = 0; i < width; i++) made[i] = R(sums[i]);
  put(out, first, width, made);
}

// One part of an item's gradients; returns its part of the gradient of a rate that is one number, where `rate_number`.
template <class R>
double part_gradients(const typename SgdStep<R>::Item& item, int64_t column, int64_t width, bool rate_number, bool streams) {
  double dparam[kPart], drate[kPart], number = 0;
  R room[3][kPart], made[kPart];
  const bool rate_shared = item.rate_kind == 1 && item.drate, rate_own = item.rate_kind == 2 && item.drate;
  for (int64_t i = 0; i < width && item.dparam; i++) dparam[i] = 0;
  for (int64_t i = 0; i < width && rate_shared; i++) drate[i] = 0;
  for_each_task<R>(item, column, [&](int64_t at, int64_t rate_at) {
    const R *dout = read(item.dout, at, width, room[0]), *grad = read(item.grad, at, width, room[1]);
    const R *rates = read(item.rate, rate_at, item.rate_kind ? width : 1, room[2]), rate = *rates;
    R* dgrad = item.dgrad ? place(item.dgrad, at, made) : nullptr;
    if (dgrad && item.rate_kind == 0)
      write(dgrad, width, streams, [&](int64_t i, auto load) __attribute__((always_inline)) { return -rate * load(dout + i); });
    else if (dgrad)
      write(dgrad, width, streams, [&](int64_t i, auto load) __attribute__((always_inline)) { return -load(rates + i) * load(dout + i); });
    if (dgrad) put(item.dgrad, at, width, dgrad);
    R* own = rate_own ? place(item.drate, at, made) : nullptr;
    if (own)
#pragma omp simd
      for (int64_t i = 0; i < width; i++) own[i] = -dout[i] * grad[i];
    if (own) put(item.drate, at, width, own);
    if (item.dparam)
#pragma omp simd
      for (int64_t i = 0; i < width; i++) dparam[i] += double(dout[i]);
    if (rate_shared)
#pragma omp simd
      for (int64_t i = 0; i < width; i++) drate[i] -= double(dout[i]) * double(grad[i]);
    if (rate_number)
#pragma omp simd reduction(- : number)
      for (int64_t i = 0; i < width; i++) number -= double(dout[i]) * double(grad[i]);
  });
  if (item.dparam) put_sums(item.dparam, column, width, dparam, made);
  if (rate_shared) put_sums(item.drate, column, width, drate, made);
  return number;
}

}  // namespace

template <class R>
void sgd_step_fwd(const SgdStep<R>& p) {
  const bool streams = outgrows_caches(p);
  for_each_part(p, kGrain, [&](const typename SgdStep<R>::Item& item, int64_t, int64_t column, int64_t width) {
    for_each_task<R>(item, column, [&](int64_t at, int64_t rate_at) {
      R room[3][kPart], made[kPart];
      const R *param = read(item.param, item.shared_param ? column : at, width, room[0]), *grad = read(item.grad, at, width, room[1]);
      const R *rates = read(item.rate, rate_at, item.rate_kind ? width : 1, room[2]), rate = *rates;
      R* out = place(item.out, at, made);
      if ((item.rate_kind == 2 || (item.rate_kind == 1 && at == column)) && !all_finite(rates, width))
        __atomic_store_n(p.not_finite, true, __ATOMIC_RELAXED);
      if (item.rate_kind == 0)
        write(out, width, streams,
              [&](int64_t i, auto load) __attribute__((always_inline)) { return load(param + i) - rounded(rate * load(grad + i)); });
      else
        write(out, width, streams, [&](int64_t i, auto load) __attribute__((always_inline)) {
          return load(param + i) - rounded(load(rates + i) * load(grad + i));
        });
      put(item.out, at, width, out);
    });
  });
}

template <class R>
void sgd_step_bwd(const SgdStep<R>& p) {
  int64_t parts = 0;
  for (int64_t i = 0; i < p.count; i++) parts += parts_of(p.items[i]);
  double* numbers = static_cast<double*>(thread_arena(size_t(parts) * sizeof(double)));
  const bool streams = outgrows_caches(p);
  const bool one_for_all = p.one_rate && p.count && p.items[0].drate;
  for_each_part(p, kGrain, [&](const typename SgdStep<R>::Item& item, int64_t part, int64_t column, int64_t width) {
    const bool rate_number = item.rate_kind == 0 && (one_for_all || item.drate);
    numbers[part] = part_gradients<R>(item, column, width, rate_number, streams);
  });
  double sum = 0;
  R room;
  for (int64_t i = 0, part = 0; i < p.count; i++) {
    for (const int64_t end = part + parts_of(p.items[i]); part < end; part++) sum += numbers[part];
    if (p.one_rate) continue;
    if (p.items[i].rate_kind == 0 && p.items[i].drate) put_sums(p.items[i].drate, 0, 1, &sum, &room);
    sum = 0;
  }
  if (one_for_all) put_sums(p.items[0].drate, 0, 1, &sum, &room);
}

template void sgd_step_fwd(const SgdStep<float>&);
template void sgd_step_fwd(const SgdStep<double>&);
template void sgd_step_bwd(const SgdStep<float>&);
template void sgd_step_bwd(const SgdStep<double>&);

}  // namespace fastmeta::FASTMETA_ISA
