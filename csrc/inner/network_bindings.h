// The functions of a network's ops as a module has them: <network>_forward_fwd and so on.
#pragma once
#include <string>

#include "ops.h"
#include "runtime/pybind.h"

namespace fastmeta {

template <class Call>
void define_network(pybind11::module_& m, const std::string& network) {
  const auto define = [&](const char* name, auto function) { m.def((network + name).c_str(), function); };
  define("_forward_fwd", declining<&network_forward_fwd<Call>>);
  define("_forward_bwd", &network_forward_bwd<Call>);
  define("_loss_fwd", declining<&network_loss_fwd<Call>>);
  define("_loss_bwd", &network_loss_bwd<Call>);
  define("_loss_value_and_grad", declining<&network_loss_value_and_grad<Call>>);
  define("_grad_fwd", declining<&network_grad_fwd<Call>>);
  define("_grad_bwd", &network_grad_bwd<Call>);
  define("_hvp_fwd", declining<&network_hvp_fwd<Call>>);
  define("_adapt_fwd", declining<&network_adapt_fwd<Call>>);
  define("_adapt_bwd", &network_adapt_bwd<Call>);
  define("_meta_loss_fwd", declining<&network_meta_loss_fwd<Call>>);
  define("_meta_loss_bwd", &network_meta_loss_bwd<Call>);
  define("_meta_loss_value_and_grad", declining<&network_meta_loss_value_and_grad<Call>>);
}

}  // namespace fastmeta
