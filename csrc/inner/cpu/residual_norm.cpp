// See residual_norm.h.
#include "inner/cpu/residual_norm.h"

#include "inner/mlp.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
void ResidualNorm<R>::forward(const R* x0, const R* gamma, const R* beta, int64_t n, R* outputs) {
  for (int64_t i = 0; i < n; i++, x0 += ld, outputs += ld) {
    R* row = xhat + i * ld;
    const R middle = mean(row);
    for (int64_t j = 0; j < width; j++) row[j] -= middle;
    r[i] = 1 / std::sqrt(mean(row, row) + R(kNormEps));
    for (int64_t j = 0; j < width; j++) row[j] *= r[i];
    for (int64_t j = 0; j < width; j++) outputs[j] = x0[j] + (gamma[j] * row[j] + (beta ? beta[j] : R(0)));
    pad(row), pad(outputs);
  }
}

template <class R>
void ResidualNorm<R>::backward(const R* d, const R* gamma, int64_t n, R* dz, R* dgamma, R* dbeta) const {
  for (int64_t j = 0; dgamma && j < ld; j++) dgamma[j] = 0;
  for (int64_t j = 0; dbeta && j < ld; j++) dbeta[j] = 0;
  for (int64_t i = 0; i < n; i++, d += ld, dz += ld) {
    const R* row = xhat + i * ld;
    for (int64_t j = 0; dgamma && j < width; j++) dgamma[j] += d[j] * row[j];
    for (int64_t j = 0; dbeta && j < width; j++) dbeta[j] += d[j];
    for (int64_t j = 0; j < width; j++) dz[j] = gamma[j] * d[j];
    through(i, dz);
  }
}

template <class R>
void ResidualNorm<R>::tangents(const R* gamma, const R* rgamma, const R* rbeta, int64_t n, R* routputs) {
  for (int64_t i = 0; i < n; i++, routputs += ld) {
    const R* row = xhat + i * ld;
    R* tangent = rxhat + i * ld;
    rr[i] = -r[i] * through(i, tangent);
    for (int64_t j = 0; j < width; j++) routputs[j] = gamma[j] * tangent[j] + rgamma[j] * row[j] + (rbeta ? rbeta[j] : R(0));
    pad(routputs);
  }
}

template <class R>
void ResidualNorm<R>::adjoint_tangents(const R* rd, const R* d, const R* dz, const R* gamma, const R* rgamma, int64_t n, R* rdz, R* rdgamma,
                                       R* rdbeta) const {
  for (int64_t i = 0; i < n; i++, rd += ld, rdz += ld) {
    const R *row = xhat + i * ld, *tangent = rxhat + i * ld;
    for (int64_t j = 0; j < width; j++) rdgamma[j] += rd[j] * row[j];
    for (int64_t j = 0; rdbeta && j < width; j++) rdbeta[j] += rd[j];
    for (int64_t j = 0; j < width; j++) rdz[j] = gamma[j] * rd[j];
    if (!d) {
      through(i, rdz);
      continue;
    }
    R along = 0, moved = 0;  // sums of g * xhat, of g * rxhat
    for (int64_t j = 0; j < width; j++) {
      const R g = gamma[j] * d[j];
      along += g * row[j], moved += g * tangent[j];
      rdgamma[j] += d[j] * tangent[j];
      rdz[j] += rgamma[j] * d[j];
    }
    along /= R(width), moved /= R(width);
    const R middle = mean(rdz), turned = mean(rdz, row) + moved;
    for (int64_t j = 0; j < width; j++) rdz[j] = r[i] * (rdz[j] - middle - tangent[j] * along - row[j] * turned) + rr[i] * dz[j];
    pad(rdz);
    d += ld, dz += ld;
  }
}

template struct ResidualNorm<float>;
template struct ResidualNorm<double>;

}  // namespace fastmeta::FASTMETA_ISA
