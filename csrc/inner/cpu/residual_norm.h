// The end of a residual block: outputs = x0 + gamma * xhat + beta, xhat = r (z - mean z), r = 1 / sqrt(var z + eps), mean and variance
// those of a row z of `width` numbers. The adjoint d of the outputs gives, with g = gamma * d and means over the row,
//
//   dgamma = sum of d * xhat,  dbeta = sum of d,  dz = r (g - mean g - xhat mean(g * xhat)),  dx0 = d.
//
// Along tangents (r...) of z, gamma and beta (x0 has none) the pass and its adjoint move by
//
//   rxhat = r (rz - mean rz - xhat mean(xhat * rz)),  rr = -r^2 mean(xhat * rz),  routputs = gamma * rxhat + rgamma * xhat + rbeta,
//   rg = gamma * rd + rgamma * d,  rdgamma = sum of rd * xhat + d * rxhat,  rdbeta = sum of rd,
//   rdz = r (rg - mean rg - rxhat mean(g * xhat) - xhat mean(rg * xhat + g * rxhat)) + (rr / r) dz.
//
// Rows of all matrices lie `ld` numbers apart; padding becomes 0. beta, rgamma, rbeta and the sums may be null.
#pragma once
#include <cmath>

#include "runtime/cpu/simd.h"

namespace fastmeta::FASTMETA_ISA {

// What a pass keeps, and its tangents.
template <class R>
struct ResidualNorm {
  int64_t width, ld;
  R *xhat, *r;    // [n, ld], [n]
  R *rxhat, *rr;  // rr: rr / r of each row

  void forward(const R* x0, const R* gamma, const R* beta, int64_t n, R* outputs);  // xhat: z before
  void backward(const R* d, const R* gamma, int64_t n, R* dz, R* dgamma, R* dbeta) const;
  void tangents(const R* gamma, const R* rgamma, const R* rbeta, int64_t n, R* routputs);  // rxhat: rz before
  // += to the sums. `d` and `dz` null: the terms of rd alone, J' rd.
  void adjoint_tangents(const R* rd, const R* d, const R* dz, const R* gamma, const R* rgamma, int64_t n, R* rdz, R* rdgamma,
                        R* rdbeta) const;

 private:
  R mean(const R* x) const {
    R sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < width; j++) sum += x[j];
    return sum / R(width);
  }
  R mean(const R* x, const R* y) const {
    R sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < width; j++) sum += x[j] * y[j];
    return sum / R(width);
  }
  // x of row i becomes r (x - mean x - xhat mean(x * xhat)), whose last mean it gives; the Jacobian of xhat is symmetric.
  R through(int64_t i, R* x) const {
    const R* row = xhat + i * ld;
    const R middle = mean(x), along = mean(x, row);
    for (int64_t j = 0; j < width; j++) x[j] = r[i] * (x[j] - middle - row[j] * along);
    pad(x);
    return along;
  }
  void pad(R* row) const {
    for (int64_t j = width; j < ld; j++) row[j] = 0;
  }
};

}  // namespace fastmeta::FASTMETA_ISA
