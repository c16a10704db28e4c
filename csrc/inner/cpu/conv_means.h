// Means that a convolutional network takes: of each channel over the pixels, for its linear layer; and of batches, which batch norms note
// (ConvNetwork::store_statistics).
#pragma once
#include "inner/cpu/conv_layout.h"

namespace fastmeta::FASTMETA_ISA {

// What the last block leaves, [n, pixels, F] -> the features [n, F]; and gradients back.
template <class R>
void mean_of_pixels(const ConvLayout<R>& layout, int64_t n, const R* x, R* features);
template <class R>
void mean_of_pixels_back(const ConvLayout<R>& layout, int64_t n, const R* dfeatures, R* d);

}  // namespace fastmeta::FASTMETA_ISA
