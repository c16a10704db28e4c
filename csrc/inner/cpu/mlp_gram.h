// mlp_meta_loss of a one-layer head, out << in, by the Gram matrix G = A A' of its features A [S, in]. The steps move W only along the
// rows of A, W_k = W_0 + E_k' A with E_k = -sum_{j<k} alpha_j d_j [S, out], and the chain moves v only along them too. So with u = A v',
//
//   z_{k+1} = z_k - alpha_k G d_k,   u_k = u_{k+1} + G rd_k,   v_0 = v_K + (sum_k rd_k)' A.
//
// All that is done at every step has the size of the examples; features are passed over before and after. The query is taken with
// W_K as it is.
#pragma once
#include "inner/cpu/inner_loop.h"
#include "inner/cpu/mlp_network.h"

namespace fastmeta::FASTMETA_ISA {

// Whether that takes fewer multiply-adds than the steps as they are.
template <class R>
bool gram_pays(const MlpMetaLoss<R>& c, const MlpLayout<R>& layout);

template <class R>
void mlp_meta_loss_by_gram(const MlpMetaLoss<R>& c, const MlpLayout<R>& layout);

}  // namespace fastmeta::FASTMETA_ISA
