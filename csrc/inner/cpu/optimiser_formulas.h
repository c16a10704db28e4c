// The steps of optimisers with a state as formulas of numbers or vectors, forward and back, and loops over columns around them: for
// momentum_step, adam_step and the inner loop.
#pragma once
#include <cmath>

#include "inner/optimiser_step.h"
#include "runtime/cpu/sizes.h"
#include "runtime/cpu/vector.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

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

// g = g + decay theta,  b' = momentum b + g,  theta' = theta - alpha b'; with Nesterov g + momentum b' in place of the last b'.
template <class R, bool nesterov>
struct Momentum {
  static constexpr int state = 1;
  R mu, decay;
  explicit Momentum(const OptimiserNumbers& p) : mu(R(p.momentum)), decay(R(p.weight_decay)) {}

  // x: theta, g, b, alpha; y: theta', b'
  template <class V>  // a number or a vector
  __attribute__((always_inline)) void forward(const V* x, V* y) const {
    const V g = decayed(x);
    y[1] = mu * x[2] + g;
    y[0] = x[0] - x[3] * (nesterov ? g + mu * y[1] : y[1]);
  }
  template <class V>
  __attribute__((always_inline)) void backward(const V* x, const V* dy, V* dx) const {
    const V g = decayed(x), b = mu * x[2] + g;
    const V dstep = -x[3] * dy[0], db = dy[1] + (nesterov ? mu * dstep : dstep), dg = nesterov ? db + dstep : db;
    dx[0] = decay == 0 ? dy[0] : dy[0] + decay * dg;
    dx[1] = dg;
    dx[2] = mu * db;
    dx[3] = -dy[0] * (nesterov ? g + mu * b : b);
  }
  template <class V>
  __attribute__((always_inline)) V decayed(const V* x) const {
    return decay == 0 ? x[1] : x[1] + decay * x[0];
  }
};

// g = g + decay theta,  m' = beta1 m + (1 - beta1) g,  v' = beta2 v + (1 - beta2) g^2,
// theta' = theta - alpha (m' / c1) / (sqrt(v' / c2) + eps); where v' is 0 its root has the derivative 0.
template <class R>
struct Adam {
  static constexpr int state = 2;
  R beta1, rest1, beta2, rest2, decay, eps, c1, c2;
  explicit Adam(const OptimiserNumbers& p)
      : beta1(R(p.beta1)),
        rest1(R(1 - p.beta1)),
        beta2(R(p.beta2)),
        rest2(R(1 - p.beta2)),
        decay(R(p.weight_decay)),
        eps(R(p.eps)),
        c1(R(p.correction1)),
        c2(R(p.correction2)) {}

  // x: theta, g, m, v, alpha; y: theta', m', v'
  template <class V>  // a number or a vector
  __attribute__((always_inline)) void forward(const V* x, V* y) const {
    const V g = decayed(x);
    y[1] = beta1 * x[2] + rest1 * g;
    y[2] = beta2 * x[3] + rest2 * g * g;
    y[0] = x[0] - x[4] * (y[1] / c1 / (root_of(y[2] / c2) + eps));
  }
  template <class V>
  __attribute__((always_inline)) void backward(const V* x, const V* dy, V* dx) const {
    const V g = decayed(x);
    const V m = beta1 * x[2] + rest1 * g, v = beta2 * x[3] + rest2 * g * g;
    const V root = root_of(v / c2), below = root + eps, step = m / c1 / below;
    const V dstep = -x[4] * dy[0] / below;  // times 1 / below
    const V dm = dy[1] + dstep / c1, none = {};
    const V dv = dy[2] - (root == 0 ? none : dstep * step / (2 * c2 * root));
    const V dg = rest1 * dm + 2 * rest2 * g * dv;
    dx[0] = decay == 0 ? dy[0] : dy[0] + decay * dg;
    dx[1] = dg;
    dx[2] = beta1 * dm;
    dx[3] = beta2 * dv;
    dx[4] = -dy[0] * step;
  }
  template <class V>
  __attribute__((always_inline)) V decayed(const V* x) const {
    return decay == 0 ? x[1] : x[1] + decay * x[0];
  }
};

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

// What a Formula makes of columns: in: theta, gradient, state, rate; out: theta, state. `one`: the rate is one number. Out may be in.
template <class Formula, class R>
FASTMETA_INLINE void columns_forward(const Formula& formula, const R* const* in, bool one, int64_t width, R* const* out) {
  constexpr int S = Formula::state, rate = 2 + S;
  for_each_column<R>(width, [&](int64_t i, auto load, auto save) __attribute__((always_inline)) {
    decltype(load(in[0], false)) x[3 + S], y[1 + S];
    for (int k = 0; k < 2 + S; k++) x[k] = load(in[k] + i, false);
    x[rate] = load(in[rate] + (one ? 0 : i), one);
    formula.forward(x, y);
    for (int k = 0; k < 1 + S; k++) save(out[k] + i, y[k]);
  });
}

// Its gradients, din like in, to those of its outputs. din may be dout.
template <class Formula, class R>
FASTMETA_INLINE void columns_back(const Formula& formula, const R* const* in, bool one, const R* const* dout, int64_t width,
                                  R* const* din) {
  constexpr int S = Formula::state, rate = 2 + S;
  for_each_column<R>(width, [&](int64_t i, auto load, auto save) __attribute__((always_inline)) {
    decltype(load(in[0], false)) x[3 + S], d[1 + S], dx[3 + S];
    for (int k = 0; k < 2 + S; k++) x[k] = load(in[k] + i, false);
    x[rate] = load(in[rate] + (one ? 0 : i), one);
    for (int k = 0; k < 1 + S; k++) d[k] = load(dout[k] + i, false);
    formula.backward(x, d, dx);
    for (int k = 0; k < 3 + S; k++) save(din[k] + i, dx[k]);
  });
}

}  // namespace
}  // namespace fastmeta::FASTMETA_ISA
