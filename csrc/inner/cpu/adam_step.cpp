// g = g + decay theta,  m' = beta1 m + (1 - beta1) g,  v' = beta2 v + (1 - beta2) g^2,
// theta' = theta - alpha (m' / c1) / (sqrt(v' / c2) + eps); where v' is 0 its root has the derivative 0.
#include "inner/cpu/optimiser_step.h"

namespace fastmeta::FASTMETA_ISA {
namespace {

template <class R>
struct Adam {
  static constexpr int state = 2;
  R beta1, rest1, beta2, rest2, decay, eps, c1, c2;
  explicit Adam(const OptimiserStep<R>& p)
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
