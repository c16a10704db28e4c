// See conv_means.h.
#include "inner/cpu/conv_means.h"

#include "inner/cpu/conv_network.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
void ConvNetwork<R>::store_statistics(const R* theta, const ConvPass<R>& pass, R* to) const {
  for (int l = 0; to && l < layout.net.blocks; l++) {
    if (layout.net.block[l].norm != ConvNorm::batch) continue;
    const Norm<R>& norm = pass.norm(l, 0);
    const R* bias = of(theta, l, kBias);  // which forward leaves out
    const int64_t channels = layout.net.block[l].out, of_all = layout.net.normed();
    for (int64_t c = 0; c < channels; c++) {
      to[c] = norm.mean[c] + (bias ? bias[c] : R(0));
      to[of_all + c] = norm.square[c] / R(pixels(l, pass) - 1);
    }
    to += channels;
  }
}

template <class R>
void mean_of_pixels(const ConvLayout<R>& layout, int64_t n, const R* x, R* features) {
  const int64_t F = layout.features, pixels = layout.net.pixels();
  for (int64_t i = 0; i < n; i++)
    for (int64_t c = 0; c < F; c++) {
      R sum = 0;
      for (int64_t p = 0; p < pixels; p++) sum += x[i * layout.last + p * F + c];
      features[i * F + c] = sum / R(pixels);
    }
}

template <class R>
void mean_of_pixels_back(const ConvLayout<R>& layout, int64_t n, const R* dfeatures, R* d) {
  const int64_t F = layout.features, pixels = layout.net.pixels();
  for (int64_t i = 0; i < n; i++)
    for (int64_t p = 0; p < pixels; p++)
      for (int64_t c = 0; c < F; c++) d[i * layout.last + p * F + c] = dfeatures[i * F + c] / R(pixels);
}

#define INSTANTIATE(R)                                                                    \
  template void ConvNetwork<R>::store_statistics(const R*, const ConvPass<R>&, R*) const; \
  template void mean_of_pixels(const ConvLayout<R>&, int64_t, const R*, R*);              \
  template void mean_of_pixels_back(const ConvLayout<R>&, int64_t, const R*, R*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastmeta::FASTMETA_ISA
