// g = g + decay theta,  m' = beta1 m + (1 - beta1) g,  v' = beta2 v + (1 - beta2) g^2,
// theta' = theta - alpha (m' / c1) / (sqrt(v' / c2) + eps); where v' is 0 its root has the derivative 0.
#include <cmath>

#include "inner/cpu/optimiser_step.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
struct Adam {
  static constexpr int state = 2;
  R beta1, rest1, beta2, rest2, decay, eps, c1, c2;
  explicit Adam(const OptimiserStep<R>& p)
      : beta1(R(p.beta1)), rest1(R(1 - p.beta1)), beta2(R(p.beta2)), rest2(R(1 - p.beta2)), decay(R(p.weight_decay)), eps(R(p.eps)),
        c1(R(p.correction1)), c2(R(p.correction2)) {}

  // x: theta, g, m, v, alpha; y: theta', m', v'
  __attribute__((always_inline)) void forward(const R* x, R* y) const {
    const R g = decayed(x);
    y[1] = beta1 * x[2] + rest1 * g;
    y[2] = beta2 * x[3] + rest2 * g * g;
    y[0] = x[0] - x[4] * (y[1] / c1 / (std::sqrt(y[2] / c2) + eps));
  }
  __attribute__((always_inline)) void backward(const R* x, const R* dy, R* dx) const {
    const R g = decayed(x);
    const R m = beta1 * x[2] + rest1 * g, v = beta2 * x[3] + rest2 * g * g;
    const R root = std::sqrt(v / c2), below = root + eps, step = m / c1 / below;
    const R dstep = -x[4] * dy[0] / below;  // times 1 / below
    const R dm = dy[1] + dstep / c1, dv = dy[2] - (root == 0 ? R(0) : dstep * step / (2 * c2 * (root == 0 ? R(1) : root)));
    const R dg = rest1 * dm + 2 * rest2 * g * dv;
    dx[0] = dy[0] + decay * dg;
    dx[1] = dg;
    dx[2] = beta1 * dm;
    dx[3] = beta2 * dv;
    dx[4] = -dy[0] * step;
  }
  __attribute__((always_inline)) R decayed(const R* x) const { return decay == 0 ? x[1] : x[1] + decay * x[0]; }
};

}  // namespace

template <class R>
void adam_step_fwd(const OptimiserStep<R>& p) {
  step_forward<Adam<R>>(p);
}

template <class R>
void adam_step_bwd(const OptimiserStep<R>& p) {
  step_backward<Adam<R>>(p);
}

template void adam_step_fwd(const OptimiserStep<float>&);
template void adam_step_fwd(const OptimiserStep<double>&);
template void adam_step_bwd(const OptimiserStep<float>&);
template void adam_step_bwd(const OptimiserStep<double>&);

}  // namespace fastmeta::FASTMETA_ISA
