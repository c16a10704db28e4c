// How a launcher of a conv op goes about a call: RUN(arguments, queue) enqueues its kernels, or with a queue that only counts takes memory.
#pragma once
#include "inner/cuda/conv_gradients.h"
#include "runtime/cuda/kernels.h"

namespace fastmeta::cuda {
namespace layerwise {

// The gradients that a caller asks for.
template <class R>
ConvTargets<R> asked(const ConvNet& net, int64_t n, const ConvParams<R>& dparams, R* dx) {
  ConvTargets<R> found;
  for (int i = 0; i < 4 * net.blocks + 2; i++) found.of[i].out = slices_of(dparams, i);
  found.dx.out = {dx, n * net.example_size()};
  return found;
}

// Where the gradients to mse's targets go.
template <class R>
Sinks<R> of_targets(const ConvNet& net, int64_t n, R* dy) {
  return {{dy, n * net.outputs}};
}

// Of a call that makes one.
template <class R>
ConvPass<R> only_pass(Queue& queue, const ConvNet& net, int64_t most, bool gradient) {
  ConvPass<R> pass;
  const int64_t bytes = place_pass(pass, net, most, gradient, nullptr);
  place_pass(pass, net, most, gradient, queue.arena().take<unsigned char>(bytes));
  return pass;
}

// Whether arrays of `n` examples are too large for the kernels: offsets within a task are ints.
inline bool too_large(const ConvNet& net, int64_t n) {
  int64_t most = n > n * net.outputs ? n : n * net.outputs;
  for (int tensor = 0; tensor < 4 * net.blocks + 2; tensor++) most = most > tensor_size(net, tensor) ? most : tensor_size(net, tensor);
  for (int l = 0; l < net.blocks; l++) {
    const ConvBlock& b = net.block[l];
    for (const int64_t size : {n * b.in * b.height * b.width, n * b.out * (b.conv_height() * b.conv_width() + 3)})
      most = most > size ? most : size;
  }
  return most > 0x7fffffff;
}

}  // namespace layerwise

// Defines a launcher of kernels.h; examples_of(arguments): the most of a task.
#define FASTMETA_DEFINE_CONV(NAME, ARGUMENTS, RUN)                                                             \
  template <class R>                                                                                           \
  const char* NAME(const ARGUMENTS<R>& c, void* workspace, void* stream) {                                     \
    if (layerwise::too_large(c.shape, examples_of(c))) return "arrays of one task with 2^31 elements or more"; \
    Queue queue(true, workspace, stream);                                                                      \
    RUN(c, queue);                                                                                             \
    return queue.error();                                                                                      \
  }                                                                                                            \
  template <class R>                                                                                           \
  int64_t NAME##_workspace(const ARGUMENTS<R>& c) {                                                            \
    if (layerwise::too_large(c.shape, examples_of(c))) return 0;                                               \
    Queue queue(false, nullptr, nullptr);                                                                      \
    RUN(c, queue);                                                                                             \
    return queue.bytes();                                                                                      \
  }                                                                                                            \
  template const char* NAME(const ARGUMENTS<float>&, void*, void*);                                            \
  template const char* NAME(const ARGUMENTS<double>&, void*, void*);                                           \
  template int64_t NAME##_workspace(const ARGUMENTS<float>&);                                                  \
  template int64_t NAME##_workspace(const ARGUMENTS<double>&);

}  // namespace fastmeta::cuda
