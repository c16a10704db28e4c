// g = g + decay theta,  b' = momentum b + g,  theta' = theta - alpha b'; with Nesterov g + momentum b' in place of the last b'.
#include "inner/cpu/optimiser_step.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R, bool nesterov>
struct Momentum {
  static constexpr int state = 1;
  R mu, decay;
  explicit Momentum(const OptimiserStep<R>& p) : mu(R(p.momentum)), decay(R(p.weight_decay)) {}

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

}  // namespace

template <class R>
void momentum_step_fwd(const OptimiserStep<R>& p) {
  if (p.nesterov) step_forward<Momentum<R, true>>(p);
  else step_forward<Momentum<R, false>>(p);
}

template <class R>
void momentum_step_bwd(const OptimiserStep<R>& p) {
  if (p.nesterov) step_backward<Momentum<R, true>>(p);
  else step_backward<Momentum<R, false>>(p);
}

template void momentum_step_fwd(const OptimiserStep<float>&);
template void momentum_step_fwd(const OptimiserStep<double>&);
template void momentum_step_bwd(const OptimiserStep<float>&);
template void momentum_step_bwd(const OptimiserStep<double>&);

}  // namespace fastmeta::FASTMETA_ISA
