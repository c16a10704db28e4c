// mlp_meta_loss of a wide linear head with few tasks: several blocks for each task, in three launches. See mlp_gram.cu.
#pragma once
#include "inner/cuda/mlp_layers.h"

namespace fastmeta::cuda {

// Whether it is such a head, and the card would else be idle: by the shape and the number of multiprocessors.
template <class R>
bool gram_pays(const MlpMetaLoss<R>& c);

template <class R>
void by_gram(const MlpMetaLoss<R>& c, Queue& queue);

}  // namespace fastmeta::cuda
