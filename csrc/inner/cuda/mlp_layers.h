// The mlp ops layer by layer over all tasks, for networks that one block cannot hold: host functions that enqueue the kernels of
// mlp_layers.cu. A pass costs a launch for each layer (two with tangents); the gradients of all parameters are one.
#pragma once
#include <type_traits>

#include "inner/cuda/mlp.cuh"
#include "inner/cuda/mlp_gradient_sink.cuh"

namespace fastmeta::cuda {

// The kernels of one call in order, and the memory that they share. Without `enqueues` it only counts the memory.
class Queue {
 public:
  Queue(bool enqueues, void* workspace, void* stream)
      : enqueues_(enqueues), arena_{nullptr, static_cast<unsigned char*>(workspace), 0, 0, 0}, stream_(stream) {}

  Arena& arena() { return arena_; }
  int64_t bytes() const { return arena_.slow_used; }
  const char* error() const { return error_; }  // the first

  template <class... Arguments>
  void launch(void (*kernel)(Arguments...), int64_t blocks, unsigned threads, SharedMemory shared,
              const std::common_type_t<Arguments>&... arguments) {
    if (!enqueues_ || error_ || !blocks) return;
    error_ = blocks > 0x7fffffff ? "more tiles than a grid has blocks"
                                 : cuda::launch(kernel, unsigned(blocks), threads, shared, stream_, arguments...);
  }

 private:
  bool enqueues_;
  Arena arena_;
  void* stream_;
  const char* error_ = nullptr;
};

namespace layerwise {

template <class P>
TaskTensor<P> slices_of(const MlpParams<P>& params, int tensor) {
  const int l = tensor / 2;
  return tensor % 2 ? TaskTensor<P>{params.bias[l], params.bias_stride[l]} : TaskTensor<P>{params.weight[l], params.weight_stride[l]};
}

// What the passes work on. The arrays of task.layer are those of all tasks, [T, n, width]; parameters lie in params.
template <class R>
struct Net {
  MlpShape shape;
  Task<R> task;
  MlpParams<const R> params, direction;
  Examples<R> examples;
  R* partial;                        // for the sums of one set of gradients; null without `need.chain`
  const R* input_tangent = nullptr;  // of the examples, [T, n, in]; null: none
};

// `most`: examples of a task. Takes what `need` asks for, but for parameters.
template <class R>
Net<R> lay_out(Queue& queue, const MlpShape& shape, const MlpParams<const R>& params, int64_t most, Need need);

// As the passes of one block: see mlp_passes.cuh.
template <class R>
void forward(Queue& queue, const Net<R>& net, bool tangent = false);
template <class R>
void backward(Queue& queue, const Net<R>& net, bool tangent = false);

// The loss, and the gradient in the outputs where the net has room for it; its tangent along ra, plus dloss times itself.
template <class R>
struct Output {
  R* loss = nullptr;  // [T]; null: not asked for
  Sinks<R> dy;        // takes -d, or with `tangent` -rd
  bool tangent = false;
  const R* dloss = nullptr;  // [T]; null: 0
  R* dweights = nullptr;     // [T, n]
  bool subtracts = false;    // from dweights
};
template <class R>
void output(Queue& queue, const Net<R>& net, const Output<R>& what);

// Of every parameter tensor, 2 l for W of layer l and 2 l + 1 for b, and of the inputs, 2 L.
template <class R>
struct Targets {
  Sinks<R> of[2 * kMaxLayers + 1];
};

// The gradients that a caller asks for; and those to mse's targets.
template <class R>
Targets<R> asked(const Net<R>& net, const MlpParams<R>& dparams, R* dx) {
  Targets<R> found;
  for (int tensor = 0; tensor < 2 * net.task.layers; tensor++) found.of[tensor].out = slices_of(dparams, tensor);
  found.of[2 * net.task.layers].out = {dx, net.examples.count * net.shape.width[0]};
  return found;
}

template <class R>
Sinks<R> of_targets(const Net<R>& net, R* dy) {
  return {{dy, net.examples.count * net.shape.width[net.shape.layers]}};
}

// Sums that the targets ask for are added to drates at a step, or with `first` written there.
template <class R>
struct Sums {
  MlpRates<R> drates;
  int64_t step, steps;
  bool first;
};
template <class R>
void gradients(Queue& queue, const Net<R>& net, bool tangent, const Targets<R>& targets, const Sums<R>& sums = {});

// out = factor in; no factor: number; no in: 0.
template <class R>
struct Scaled {
  TaskTensor<R> out;
  TaskTensor<const R> in, factor;
  bool per_element;
  int64_t size;
  R number = 1;
};
template <class R>
struct Scalings {
  int count = 0;
  Scaled<R> item[2 * kMaxLayers + 3];
};
template <class R>
void scale(Queue& queue, int64_t tasks, const Scalings<R>& what);

}  // namespace layerwise
}  // namespace fastmeta::cuda
