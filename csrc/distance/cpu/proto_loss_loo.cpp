// What a leave-one-out loss adds to the loss of examples against the means c of their classes: for each example x the distance to the
// mean w of the others of its class, w = c + (c - x) / (n - 1), and in backward what its gradient adds to those of x and c. A thread
// owns classes: their examples are read once for each, in order.
#include "distance/cpu/unit_rows.h"
#include "runtime/cpu/kernels.h"
#include "runtime/parallel.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements of the embeddings that are worth another thread

// sum_d term(x_d, c_d), whose arguments are numbers or vectors of them; sums of kRowSum terms each, added up.
template <class R, class Term>
FASTMETA_INLINE R sum_of_pairs(const R* x, const R* c, int64_t D, Term&& term) {
  R total = 0;
  for (int64_t begin = 0; begin < D; begin += kRowSum)
    total += sum_of_row<R>(
        least(kRowSum, D - begin), [&](int64_t d) __attribute__((always_inline)) { return term(load(x + begin + d), load(c + begin + d)); },
        [&](int64_t d) __attribute__((always_inline)) { return term(x[begin + d], c[begin + d]); });
  return total;
}

template <class R>
R inverse_of(R square) {
  return square == 0 ? R(0) : 1 / square_root(square);
}

// 1 - cos(x, w); leaves 1 / |x|, 1 / |w| in `inverse`.
template <class R>
R cosine_distance(const R* x, const R* c, int64_t D, R back, R* inverse) {
  const R of_x = inverse_of(dot(x, x, D));
  const R of_w = inverse_of(sum_of_pairs(x, c, D, [&](auto x, auto c) __attribute__((always_inline)) {
    const auto w = c + (c - x) * back;
    return w * w;
  }));
  const R square = sum_of_pairs(x, c, D, [&](auto x, auto c) __attribute__((always_inline)) {
    const auto apart = x * of_x - (c + (c - x) * back) * of_w;
    return apart * apart;
  });
  inverse[0] = of_x, inverse[1] = of_w;
  return R(0.5) * (square + (of_x == 0) + (of_w == 0));
}

// body(task, class, examples, their count, 1 / (count - 1)).
template <class R, class Body>
void for_each_class(const ProtoLossLoo<R>& p, Body&& body) {
  parallel_for(p.T * p.N, 1 + kGrain * p.N / (p.S * p.D + 1), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t t = unit / p.N, n = unit % p.N, *start = p.start + t * (p.N + 1);
      body(t, n, p.members + t * p.S + start[n], start[n + 1] - start[n], R(1) / R(start[n + 1] - start[n] - 1));
    }
  });
}

// From g = ddistance: dx and dc get its part of theirs.
template <class R>
void add_cosine(const R* x, const R* c, int64_t D, R back, const R* inverse, R distance, R g, R* dx, R* dc) {
  const R of_x = inverse[0], of_w = inverse[1], to_x = g * of_x, to_w = -g * of_w, from_x = -back * to_w, from_c = (1 + back) * to_w;
#pragma omp simd
  for (int64_t d = 0; d < D; d++) {
    const R u = x[d] * of_x, v = (c[d] + (c[d] - x[d]) * back) * of_w, apart = u - v, of_v = apart + v * distance;
    dx[d] += to_x * (apart - u * distance) + from_x * of_v;
    dc[d] += from_c * of_v;
  }
}

template <class R>
void add_difference(const R* x, const R* c, int64_t D, R weight, R* dx, R* dc) {
#pragma omp simd
  for (int64_t d = 0; d < D; d++) {
    const R part = weight * (x[d] - c[d]);
    dx[d] += part;
    dc[d] -= part;
  }
}

// The coefficient of x - c in the gradient of g times the distance, from x - w = (x - c) (1 + back).
template <class R>
R weight_of(Metric metric, R distance, R back, R g) {
  const R factor = (1 + back) * (1 + back) * g;
  if (metric == Metric::sqeuclidean) return 2 * factor;
  return distance == 0 ? R(0) : factor / distance;
}

}  // namespace

template <class R>
void proto_loss_loo_fwd(const ProtoLossLoo<R>& p) {
  for_each_class(p, [&](int64_t t, int64_t n, const int64_t* members, int64_t count, R back) {
    const R* c = p.centres + (t * p.N + n) * p.D;
    for (int64_t i = 0; i < count; i++) {
      const int64_t s = t * p.S + members[i];
      const R* x = p.x + s * p.D;
      if (p.metric == Metric::cosine) {
        p.distances[s] = cosine_distance(x, c, p.D, back, p.inverse_norms + 2 * s);
        continue;
      }
      const R square = squared_distance(x, c, p.D), factor = 1 + back;
      p.distances[s] = p.metric == Metric::euclidean ? square_root(square) * factor : square * (factor * factor);
    }
  });
}

template <class R>
void proto_loss_loo_bwd(const ProtoLossLoo<R>& p) {
  for_each_class(p, [&](int64_t t, int64_t n, const int64_t* members, int64_t count, R back) {
    const R *c = p.centres + (t * p.N + n) * p.D, share = 1 / R(count);
    R* dc = p.dcentres + (t * p.N + n) * p.D;
    for (int64_t i = 0; i < count; i++) {
      const int64_t s = t * p.S + members[i];
      const R *x = p.x + s * p.D, g = p.ddistances[s], distance = p.distances[s];
      R* dx = p.dx + s * p.D;
      if (p.metric == Metric::cosine) add_cosine(x, c, p.D, back, p.inverse_norms + 2 * s, distance, g, dx, dc);
      else add_difference(x, c, p.D, weight_of(p.metric, distance, back, g), dx, dc);
    }
    for (int64_t i = 0; i < count; i++) {
      R* dx = p.dx + (t * p.S + members[i]) * p.D;
#pragma omp simd
      for (int64_t d = 0; d < p.D; d++) dx[d] += share * dc[d];
    }
  });
}

template void proto_loss_loo_fwd(const ProtoLossLoo<float>&);
template void proto_loss_loo_fwd(const ProtoLossLoo<double>&);
template void proto_loss_loo_bwd(const ProtoLossLoo<float>&);
template void proto_loss_loo_bwd(const ProtoLossLoo<double>&);

}  // namespace fastmeta::FASTMETA_ISA
