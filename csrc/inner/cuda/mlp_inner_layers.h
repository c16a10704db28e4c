// The inner loop of all tasks and the chain of Hessian-vector products that runs back through it, layer by layer. As in
// mlp_inner.cuh a gradient is never stored: its product goes straight into the next parameters, the cotangent or the gradients
// of the rates.
#pragma once
#include "inner/cuda/mlp_layers.h"

namespace fastmeta::cuda::layerwise {

constexpr int kAligned = 4;  // elements between the beginnings of a task's tensors in memory of our own: for 128-bit loads

inline int64_t round_up(int64_t size, int to) { return (size + to - 1) / to * to; }

template <class R>
int64_t padded_params(const Task<R>& s) {
  int64_t total = 0;
  for_each_tensor(s, [&](int, int, int size) { total += round_up(size, kAligned); });
  return total;
}

// Step `step` of flat parameters [T, steps, P], each tensor's beginning rounded up to `aligned`.
template <class R>
MlpParams<R> at_step(const Task<R>& s, R* flat, int64_t step, int64_t steps, int aligned) {
  MlpParams<R> found;
  int64_t params = 0;
  for_each_tensor(s, [&](int, int, int size) { params += round_up(size, aligned); });
  R* next = flat ? flat + step * params : nullptr;
  for_each_tensor(s, [&](int tensor, int, int size) {
    const int l = tensor / 2;
    (tensor % 2 ? found.bias[l] : found.weight[l]) = next;
    (tensor % 2 ? found.bias_stride[l] : found.weight_stride[l]) = steps * params;
    if (next) next += round_up(size, aligned);
  });
  return found;
}

template <class R>
MlpParams<const R> as_const(const MlpParams<R>& params) {
  MlpParams<const R> found;
  for (int l = 0; l < kMaxLayers; l++) {
    found.weight[l] = params.weight[l];
    found.bias[l] = params.bias[l];
    found.weight_stride[l] = params.weight_stride[l];
    found.bias_stride[l] = params.bias_stride[l];
  }
  return found;
}

// to = factor * from, tensor by tensor, where `to` is asked for; `rates` null: 1.
template <class R>
void scale(Queue& queue, const Net<R>& net, const MlpParams<R>& to, const MlpParams<const R>& from,
           const MlpRates<const R>* rates = nullptr, int64_t step = 0, int64_t steps = 0) {
  Scalings<R> what;
  for_each_tensor(net.task, [&](int tensor, int, int size) {
    if (!slices_of(to, tensor).data) return;
    const R* factor = rates ? rates_of(*rates, tensor, size, step, steps, 0) : nullptr;
    what.item[what.count++] = {slices_of(to, tensor),
                               slices_of(from, tensor),
                               {factor},
                               rates && rates->per_element,
                               size,
                               rates ? number_of(*rates, tensor) : R(1)};
  });
  scale(queue, net.shape.tasks, what);
}

// `asked`, with memory of our own for the tensors that are not.
template <class R>
MlpParams<R> complete(Queue& queue, const Net<R>& net, const MlpParams<R>& asked) {
  R* memory = queue.arena().take<R>(net.shape.tasks * padded_params(net.task));
  MlpParams<R> found = at_step(net.task, memory, 0, 1, kAligned);
  for (int l = 0; l < net.task.layers; l++) {
    if (asked.weight[l]) found.weight[l] = asked.weight[l], found.weight_stride[l] = asked.weight_stride[l];
    if (asked.bias[l]) found.bias[l] = asked.bias[l], found.bias_stride[l] = asked.bias_stride[l];
  }
  return found;
}

template <class R>
struct Inner {
  Queue& queue;
  Net<R>& net;
  const MlpRates<const R>& rates;
  const MlpRates<R>& drates;     // [T, ...]; null: not asked for
  const ExampleGrads<R>& grads;  // of the support
  int64_t steps;
  bool first_order;

  // next = theta - alpha g; they may be the same.
  void descend(int64_t step, const MlpParams<const R>& theta, const MlpParams<R>& next) {
    net.params = theta;
    forward(queue, net);
    output(queue, net, {});
    backward(queue, net);
    Targets<R> to;
    for_each_tensor(net.task, [&](int tensor, int, int size) {
      to.of[tensor] = {slices_of(next, tensor),
                       -number_of(rates, tensor),
                       slices_of(theta, tensor),
                       {rates_of(rates, tensor, size, step, steps, 0)},
                       rates.per_element};
    });
    gradients(queue, net, false, to);
  }

  // One link of the chain: next = v - H (alpha v), or nothing of it to first order; dalpha -= v g.
  void link(int64_t step, const MlpParams<const R>& theta, const MlpParams<const R>& v, const MlpParams<R>& next,
            const MlpParams<R>& direction) {
    const bool tangent = !first_order, first = step == steps - 1;
    const int64_t n = net.examples.count;
    R *dx = tangent ? grads.dx : nullptr, *dy = tangent ? grads.dy : nullptr;
    if (tangent) scale(queue, net, direction, v, &rates, step, steps);
    net.params = theta;
    net.direction = as_const(direction);
    forward(queue, net, tangent);
    const TaskTensor<R> to_y{dy, n * net.shape.width[net.task.layers]}, to_x{dx, n * net.shape.width[0]};
    output(queue, net,
           {nullptr, {to_y, R(-1), {first ? nullptr : dy, to_y.stride}}, tangent, nullptr, tangent ? grads.dweights : nullptr, true});
    backward(queue, net, tangent);
    rate_gradients(step, v, first || drates.per_step);
    if (!tangent) return;
    Targets<R> to;
    for_each_tensor(net.task, [&](int tensor, int, int) { to.of[tensor] = {slices_of(next, tensor), R(-1), slices_of(v, tensor)}; });
    to.of[2 * net.task.layers] = {to_x, R(-1), {first ? nullptr : dx, to_x.stride}};
    gradients(queue, net, true, to);
  }

  // The whole chain, from v at the last step's end; `into`: where it then stands. theta(k): the parameters before step k.
  template <class Theta>
  void run_back(MlpParams<const R> v, const MlpParams<R>& into, Theta&& theta) {
    zero_others();
    if (first_order && !asks_rates()) return;
    const MlpParams<R> direction = first_order ? MlpParams<R>{} : complete(queue, net, {});
    for (int64_t k = steps - 1; k >= 0; k--) {
      link(k, theta(k), v, into, direction);
      if (!first_order) v = as_const(into);
    }
  }

  bool asks_rates() const {
    bool any = false;
    for (R* value : drates.value) any = any || value;
    return any;
  }

  void rate_gradients(int64_t step, const MlpParams<const R>& v, bool first) {
    if (!asks_rates()) return;
    Targets<R> to;
    for_each_tensor(net.task, [&](int tensor, int, int size) {
      R* dalpha = rates_of(drates, tensor, size, step, steps, 0);
      const int64_t stride = (drates.per_step ? steps : 1) * size;
      Sinks<R>& target = to.of[tensor];
      target.scale = R(-1);
      target.factor = slices_of(v, tensor);
      target.per_element = true;
      target.sums = dalpha && !drates.per_element;
      if (drates.per_element) target.out = {dalpha, stride};
      if (drates.per_element && !first) target.base = {dalpha, stride};
    });
    gradients(queue, net, false, to, {drates, step, steps, first});
  }

  // Gradients of which the chain has no term, and those that it adds to.
  void zero_others() {
    Scalings<R> what;
    const auto add = [&](R* out, int64_t size) {
      if (out && size) what.item[what.count++] = {{out, size}, {}, {}, false, size};
    };
    if (first_order || !steps) {
      add(grads.dx, net.examples.count * net.shape.width[0]);
      add(grads.dy, net.examples.count * net.shape.width[net.task.layers]);
    }
    add(grads.dweights, net.examples.count);  // the links subtract from it
    if (!steps && !drates.per_step)
      for_each_tensor(net.task, [&](int tensor, int, int size) {
        if (!tensor || !drates.shared) add(drates.value[tensor], drates.per_element ? size : 1);
      });
    scale(queue, net.shape.tasks, what);
  }
};

}  // namespace fastmeta::cuda::layerwise
