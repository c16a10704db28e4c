// Numbers of 16 bits for the CPU kernels of networks, which compute in float: some tasks at a time, whose numbers are widened before the
// kernel and whose results are rounded after it. Rates, the cotangents of losses and gradients are float themselves: a gradient may be
// scaled, or summed over tasks, before it is rounded.
#pragma once
#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "inner/conv.h"
#include "inner/mlp.h"
#include "runtime/stored.h"

namespace fastmeta {

// Tasks at a time, at least: for several threads (not tuned further).
constexpr int64_t kNarrowTasks = 16;

// What an array of a call holds: numbers of 16 bits for each task, or one task's for all; or wider ones for each task.
enum class Numbers { narrow, shared, wide };

// for_each_array(call, f) calls f(pointer, numbers of a task, Numbers) for every array of a call that has 16 bits or grows with the tasks.
template <class R, class F>
void for_each_tensor(const MlpShape& shape, MlpParams<R>& params, F&& f) {
  for (int l = 0; l < shape.layers; l++) {
    f(params.weight[l], shape.width[l] * shape.width[l + 1], params.weight_stride[l]);
    f(params.bias[l], shape.width[l + 1], params.bias_stride[l]);
  }
  const int L = shape.layers;
  if (!shape.residual_norm) return;
  f(params.weight[L], shape.width[L], params.weight_stride[L]);
  f(params.bias[L], shape.width[L], params.bias_stride[L]);
}
template <class R, class F>
void for_each_tensor(const ConvNet& net, ConvParams<R>& params, F&& f) {
  for (int i = 0; i < 4 * net.blocks + (net.outputs ? 2 : 0); i++) f(params.value[i], tensor_size(net, i), params.stride[i]);
}
template <class N, class Params, class F>
void for_each_param(const N& shape, Params& params, F& f) {
  for_each_tensor(shape, params, [&](auto*& p, int64_t size, int64_t stride) { f(p, size, stride ? Numbers::narrow : Numbers::shared); });
}
template <class N, class Params, class F>
void for_each_result(const N& shape, Params& params, Numbers numbers, F& f) {
  for_each_tensor(shape, params, [&](auto*& p, int64_t size, int64_t) { f(p, size, numbers); });
}
template <class N, class F>
void for_each_rate(const N& shape, RatesOf<float, N>& drates, int64_t steps, F& f) {
  const int64_t kinds = drates.per_step ? steps : 1;
  typename N::template Params<float> sizes;  // a tensor's place in drates is its place here
  int i = 0;
  for_each_tensor(shape, sizes,
                  [&](auto*&, int64_t size, int64_t) { f(drates.value[i++], kinds * (drates.per_element ? size : 1), Numbers::wide); });
}
template <class N, class F>
void for_each_example(const N& shape, Examples<float>& examples, F& f, int64_t batches = 1) {
  const int64_t n = examples.count * batches;
  f(examples.x, n * shape.example_size(), Numbers::narrow);
  f(examples.weights, n, Numbers::narrow);
  if (shape.loss == Loss::cross_entropy) {
    auto* y = static_cast<const int64_t*>(examples.y);
    f(y, n, Numbers::wide);
    examples.y = y;
  } else {
    auto* y = static_cast<const float*>(examples.y);
    f(y, n * shape.output_size(), Numbers::narrow);
    examples.y = y;
  }
}
template <class N, class F>
void for_each_example_grad(const N& shape, ExampleGrads<float>& grads, int64_t n, F& f) {
  f(grads.dx, n * shape.example_size(), Numbers::wide);
  f(grads.dy, n * shape.output_size(), Numbers::wide);
  f(grads.dweights, n, Numbers::wide);
}

template <class N, class F>
void for_each_array(ForwardCall<float, N>& c, F&& f) {
  const int64_t out = c.count * c.shape.output_size();
  for_each_param(c.shape, c.params, f);
  f(c.x, c.count * c.shape.example_size(), Numbers::narrow);
  f(c.out, out, Numbers::narrow);
  f(c.dout, out, Numbers::narrow);
  for_each_result(c.shape, c.dparams, Numbers::wide, f);
  f(c.dx, c.count * c.shape.example_size(), Numbers::wide);
}
template <class N, class F>
void for_each_array(LossCall<float, N>& c, F&& f) {
  for_each_param(c.shape, c.params, f);
  for_each_example(c.shape, c.examples, f);
  f(c.loss, 1, Numbers::narrow);
  for_each_result(c.shape, c.dparams, Numbers::wide, f);
  for_each_example_grad(c.shape, c.grads, c.examples.count, f);
}
template <class N, class F>
void for_each_array(CurvatureCall<float, N>& c, F&& f) {
  for_each_param(c.shape, c.params, f);
  for_each_param(c.shape, c.vectors, f);
  for_each_example(c.shape, c.examples, f);
  f(c.dloss, 1, Numbers::wide);
  for_each_result(c.shape, c.dparams, Numbers::wide, f);
  for_each_example_grad(c.shape, c.grads, c.examples.count, f);
}
template <class N, class F>
void for_each_array(AdaptCall<float, N>& c, F&& f) {
  for_each_param(c.shape, c.params, f);
  for_each_example(c.shape, c.support, f, batches(c));
  for_each_result(c.shape, c.adapted, Numbers::narrow, f);
  for_each_param(c.shape, c.dadapted, f);
  for_each_result(c.shape, c.dparams, Numbers::wide, f);
  for_each_rate(c.shape, c.drates, c.steps, f);
  for_each_example_grad(c.shape, c.support_grads, c.support.count * batches(c), f);
}
template <class N, class F>
void for_each_array(MetaLossCall<float, N>& c, F&& f) {
  for_each_param(c.shape, c.params, f);
  for_each_example(c.shape, c.support, f, batches(c));
  for_each_example(c.shape, c.query, f);
  f(c.loss, 1, Numbers::narrow);
  f(c.outputs, c.query.count * c.shape.output_size(), Numbers::narrow);
  for_each_result(c.shape, c.dparams, Numbers::wide, f);
  for_each_rate(c.shape, c.drates, c.steps, f);
  for_each_example_grad(c.shape, c.support_grads, c.support.count * batches(c), f);
  for_each_example_grad(c.shape, c.query_grads, c.query.count, f);
}
template <class F>
void for_each_array(ConvFeatures<float>& c, F&& f) {
  const ConvBlock& last = c.shape.block[c.shape.blocks - 1];
  const int64_t out = c.count * last.out * last.out_height() * last.out_width(), in = c.count * c.shape.example_size();
  int64_t channels = 0;
  for (int l = 0; l < c.shape.blocks; l++) channels += c.shape.block[l].norm == ConvNorm::batch ? c.shape.block[l].out : 0;
  for_each_param(c.shape, c.params, f);
  f(c.x, in, Numbers::narrow);
  f(c.out, out, Numbers::narrow);
  f(c.mean, channels, Numbers::narrow);
  f(c.var, channels, Numbers::narrow);
  f(c.dout, out, Numbers::narrow);
  for_each_result(c.shape, c.dparams, Numbers::wide, f);
  f(c.dx, in, Numbers::wide);
  f(c.kept, c.sizes->kept, Numbers::wide);
}

// The arrays of a call and room for some tasks' numbers of them.
class NarrowArrays {
 public:
  explicit NarrowArrays(Storage as) : as_(as) {}

  // The next array, in the order of for_each_array.
  void add(const float* at, int64_t size, Numbers numbers) { add(at, size, numbers, false); }
  void add(float* at, int64_t size, Numbers numbers) { add(at, size, numbers, true); }
  void add(const int64_t*, int64_t, Numbers) {}
  // Room for `least` of `tasks`, or for more where they are small: returns for how many. What all tasks share is widened.
  int64_t make_room(int64_t tasks, int64_t least);

  // What tasks [first, first + count) read is widened; what they wrote is rounded.
  void widen(int64_t first, int64_t count) const;
  void round(int64_t first, int64_t count) const;
  // Where the numbers of tasks from `first` on are, of the arrays in turn.
  template <class P>
  P* place(P* at, int64_t size, Numbers numbers, int64_t first) {
    if (!at) return at;
    if constexpr (std::is_same_v<std::remove_const_t<P>, float>)
      if (numbers != Numbers::wide) return arrays_[next_++ % arrays_.size()].room;
    return at + first * size;
  }

 private:
  struct Array {
    uint16_t* numbers;
    int64_t size;
    bool shared, written;
    float* room;
  };
  void add(const float* at, int64_t size, Numbers numbers, bool written);

  Storage as_;
  std::vector<Array> arrays_;
  std::unique_ptr<float[]> room_;
  size_t next_ = 0;
};

template <class Call>
constexpr bool kIsFloat = false;
template <template <class...> class Call, class... N>
constexpr bool kIsFloat<Call<float, N...>> = true;

// Runs a CPU kernel on a call whose arrays have 16 bits, at least so many tasks at a time.
template <class Call>
void run_narrow(Storage as, const Call& call, int64_t least, void (*kernel)(const Call&)) {
  NarrowArrays arrays(as);
  Call part = call;
  for_each_array(part, [&](auto*& at, int64_t size, Numbers numbers) { arrays.add(at, size, numbers); });
  const int64_t total = call.shape.tasks, tasks = arrays.make_room(total, least);
  for (int64_t first = 0; first < total; first += tasks, part = call) {
    part.shape.tasks = std::min(tasks, total - first);
    arrays.widen(first, part.shape.tasks);
    for_each_array(part, [&](auto*& at, int64_t size, Numbers numbers) { at = arrays.place(at, size, numbers, first); });
    kernel(part);
    arrays.round(first, part.shape.tasks);
  }
}

}  // namespace fastmeta
