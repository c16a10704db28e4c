// The functions that bindings.cpp exposes, one file csrc/<op>.cpp each: they check what memory safety depends on, allocate
// the outputs and hand raw pointers to the kernels of the tensors' device.
//
//   <op>_fwd(arguments..., needs)                     -> (outputs, saved)
//   <op>_bwd(cotangents, saved, arguments..., needs)  -> the gradients that are needed
//
// `needs`: one bool for each flat input. `saved`: what forward keeps for backward; backward may come without it, as (). A forward that
// declines its arguments (a TypeError or ValueError in C++) answers the reason, a str: declining() in runtime/pybind.h.
//
// A loss whose forward finds the gradients too has both in one call:
//
//   <op>_value_and_grad(arguments..., needs, cotangents)  -> (outputs, the gradients that are needed, of their sum where cotangents
//                                                            is None), or the reason
#pragma once
#include <cstdint>
#include <string>

#include "runtime/python.h"

namespace fastmeta {
using Handle = py::handle;
using Str = const std::string&;

// The first label outside [0, num_classes) that is not ignore_index, or None.
py::object label_out_of_range(Handle labels, int64_t num_classes, Handle ignore_index);
// (task, class) of the first class without an example, or None. labels: [..., S].
py::object empty_class(Handle labels, int64_t num_classes);

py::tuple prototypes_fwd(Handle support, Handle labels, int64_t num_classes, Handle needs);
py::tuple prototypes_bwd(Handle cotangents, Handle saved, Handle support, Handle labels, int64_t num_classes, Handle needs);

py::tuple proto_log_softmax_fwd(Handle query, Handle prototypes, Handle temperature, Str metric, Handle needs);
py::tuple proto_log_softmax_bwd(Handle cotangents, Handle saved, Handle query, Handle prototypes, Handle temperature, Str metric,
                                Handle needs);

py::tuple proto_loss_fwd(Handle query, Handle prototypes, Handle targets, Handle temperature, Handle exclude, Handle target_distance,
                         Handle bias, Handle classes, Str metric, int64_t ignore_index, Str reduction, double margin, double smoothing,
                         bool counts_hits, Handle needs);
py::tuple proto_loss_bwd(Handle cotangents, Handle saved, Handle query, Handle prototypes, Handle targets, Handle temperature,
                         Handle exclude, Handle target_distance, Handle bias, Handle classes, Str metric, int64_t ignore_index,
                         Str reduction, double margin, double smoothing, bool counts_hits, Handle needs);
py::tuple proto_loss_value_and_grad(Handle query, Handle prototypes, Handle targets, Handle temperature, Handle exclude,
                                    Handle target_distance, Handle bias, Handle classes, Str metric, int64_t ignore_index, Str reduction,
                                    double margin, double smoothing, bool counts_hits, Handle needs, Handle cotangents);

py::tuple proto_loss_loo_fwd(Handle embeddings, Handle labels, Handle temperature, int64_t num_classes, Str metric, Str reduction,
                             Handle needs);
py::tuple proto_loss_loo_bwd(Handle cotangents, Handle saved, Handle embeddings, Handle labels, Handle temperature, int64_t num_classes,
                             Str metric, Str reduction, Handle needs);

py::tuple symmetric_loss_fwd(Handle query, Handle keys, Handle temperature, Str metric, Handle needs);
py::tuple symmetric_loss_bwd(Handle cotangents, Handle saved, Handle query, Handle keys, Handle temperature, Str metric, Handle needs);

py::tuple matching_log_probs_fwd(Handle query, Handle support, Handle labels, Handle temperature, int64_t num_classes, Str metric,
                                 Handle needs);
py::tuple matching_log_probs_bwd(Handle cotangents, Handle saved, Handle query, Handle support, Handle labels, Handle temperature,
                                 int64_t num_classes, Str metric, Handle needs);

py::tuple sgd_step_fwd(Handle params, Handle grads, Handle lr, Handle needs);
py::tuple sgd_step_bwd(Handle cotangents, Handle saved, Handle params, Handle grads, Handle lr, Handle needs);

py::tuple momentum_step_fwd(Handle params, Handle grads, Handle velocities, Handle lr, Handle learned, Handle momentum, Handle weight_decay,
                            bool nesterov, Handle needs);
py::tuple momentum_step_bwd(Handle cotangents, Handle saved, Handle params, Handle grads, Handle velocities, Handle lr, Handle learned,
                            Handle momentum, Handle weight_decay, bool nesterov, Handle needs);
py::tuple adam_step_fwd(Handle params, Handle grads, Handle means, Handle squares, Handle lr, Handle step, Handle learned, Handle beta1,
                        Handle beta2, Handle weight_decay, Handle eps, Handle needs);
py::tuple adam_step_bwd(Handle cotangents, Handle saved, Handle params, Handle grads, Handle means, Handle squares, Handle lr, Handle step,
                        Handle learned, Handle beta1, Handle beta2, Handle weight_decay, Handle eps, Handle needs);

// The ops of networks, mlp_forward_fwd and so on, by the network. Call: MlpCall, whose `network` is the activation, or ConvCall, whose
// `network` is (stride, padding, norm, eps, relu, pool) of each block.
// Targets: a tensor, or a list of it and the examples' weights.
class MlpCall;
class ConvCall;

template <class Call>
py::tuple network_forward_fwd(Handle params, Handle inputs, Handle network, Handle needs);
template <class Call>
py::tuple network_forward_bwd(Handle cotangents, Handle saved, Handle params, Handle inputs, Handle network, Handle needs);

template <class Call>
py::tuple network_loss_fwd(Handle params, Handle inputs, Handle targets, Handle network, Str loss, Handle needs);
template <class Call>
py::tuple network_loss_bwd(Handle cotangents, Handle saved, Handle params, Handle inputs, Handle targets, Handle network, Str loss,
                           Handle needs);
template <class Call>
py::tuple network_loss_value_and_grad(Handle params, Handle inputs, Handle targets, Handle network, Str loss, Handle needs,
                                      Handle cotangents);

template <class Call>
py::tuple network_grad_fwd(Handle params, Handle inputs, Handle targets, Handle network, Str loss, Handle needs);
template <class Call>
py::tuple network_grad_bwd(Handle cotangents, Handle saved, Handle params, Handle inputs, Handle targets, Handle network, Str loss,
                           Handle needs);

template <class Call>
py::tuple network_hvp_fwd(Handle params, Handle vectors, Handle inputs, Handle targets, Handle network, Str loss, Str curvature,
                          Handle needs);

template <class Call>
py::tuple network_adapt_fwd(Handle params, Handle rates, Handle inputs, Handle targets, int64_t steps, Handle network, Str loss,
                            bool first_order, Handle inner, Handle needs);
template <class Call>
py::tuple network_adapt_bwd(Handle cotangents, Handle saved, Handle params, Handle rates, Handle inputs, Handle targets, int64_t steps,
                            Handle network, Str loss, bool first_order, Handle inner, Handle needs);

template <class Call>
py::tuple network_meta_loss_fwd(Handle params, Handle rates, Handle support_x, Handle support_y, Handle query_x, Handle query_y,
                                int64_t steps, Handle network, Str loss, bool first_order, bool return_outputs, Handle inner, Handle needs);
template <class Call>
py::tuple network_meta_loss_bwd(Handle cotangents, Handle saved, Handle params, Handle rates, Handle support_x, Handle support_y,
                                Handle query_x, Handle query_y, int64_t steps, Handle network, Str loss, bool first_order,
                                bool return_outputs, Handle inner, Handle needs);
// `with_statistics`, of convolutions: the outputs end with the statistics of batch norms (inner/network.h).
template <class Call, bool with_statistics = false>
py::tuple network_meta_loss_value_and_grad(Handle params, Handle rates, Handle support_x, Handle support_y, Handle query_x, Handle query_y,
                                           int64_t steps, Handle network, Str loss, bool first_order, bool return_outputs, Handle inner,
                                           Handle needs, Handle cotangents);

}  // namespace fastmeta
