// The inner loop of the conv ops on CUDA, over all tasks, and the chain of Hessian-vector products back through it:
// v_k = v_{k+1} - H_k (alpha_k v_{k+1}). What the steps leave is kept where all of it is small (kKeptBytes), else found again on the way
// back. A gradient is stored for the rates alone: it goes straight into the next parameters, and its tangent into the cotangent.
#pragma once
#include "inner/cuda/conv_gradients.h"
#include "inner/cuda/mlp_inner_layers.h"

namespace fastmeta::cuda::layerwise {

constexpr int64_t kKeptBytes = int64_t(8) << 30;  // chosen, not measured

// Numbers of a task's parameters, each tensor's beginning rounded up to `aligned`.
template <class P>
int64_t params_size(const ConvNet& net, const ConvParams<P>& like, int aligned) {
  int64_t total = 0;
  for (int i = 0; i < kConvTensors; i++) total += like.value[i] ? round_up(tensor_size(net, i), aligned) : 0;
  return total;
}

// Step `step` of flat parameters [T, steps, P] in the structure of `like`.
template <class R, class P>
ConvParams<R> params_at(const ConvNet& net, const ConvParams<P>& like, R* flat, int64_t step, int64_t steps, int aligned) {
  ConvParams<R> found;
  const int64_t size = params_size(net, like, aligned);
  R* next = flat ? flat + step * size : nullptr;
  for (int i = 0; i < kConvTensors; i++) {
    if (!like.value[i]) continue;
    found.value[i] = next, found.stride[i] = steps * size;
    if (next) next += round_up(tensor_size(net, i), aligned);
  }
  return found;
}

// `asked`, with memory of our own for the parameters that are not.
template <class R>
ConvParams<R> complete(Queue& queue, const ConvNet& net, const ConvParams<const R>& like, const ConvParams<R>& asked) {
  R* memory = queue.arena().take<R>(net.tasks * params_size(net, like, kAligned));
  ConvParams<R> found = params_at(net, like, memory, 0, 1, kAligned);
  for (int i = 0; i < kConvTensors; i++)
    if (asked.value[i]) found.value[i] = asked.value[i], found.stride[i] = asked.stride[i];
  return found;
}

// to = factor * from, or without a `from` 0, tensor by tensor, where `to` is asked for; rates null: 1.
template <class R>
void scale(Queue& queue, const ConvNet& net, const ConvParams<R>& to, const ConvParams<const R>& from,
           const ConvRates<const R>* rates = nullptr, int64_t step = 0, int64_t steps = 0) {
  Scalings<R> what;
  constexpr int kMost = sizeof(what.item) / sizeof(what.item[0]);
  for (int i = 0; i < 4 * net.blocks + 2; i++) {
    if (!to.value[i]) continue;
    const int64_t size = tensor_size(net, i);
    const R* factor = rates ? rates_of(*rates, i, int(size), step, steps, 0) : nullptr;
    what.item[what.count++] = {
        slices_of(to, i), slices_of(from, i), {factor}, rates && rates->per_element, size, rates ? number_of(*rates, i) : R(1)};
    if (what.count == kMost) layerwise::scale(queue, net.tasks, what), what.count = 0;
  }
  layerwise::scale(queue, net.tasks, what);
}

// Call: AdaptCall or MetaLossCall of a ConvNet. most: examples of the largest pass; runs_back: whether the chain will run; keeps: whether
// what the steps leave may be kept for it, and another pass beside.
template <class R, class Call>
struct ConvInner {
  Queue& queue;
  const Call& call;
  const ConvNet& net;
  bool second_order, asks_rates = false, kept = false;
  Convs<R> convs;
  ConvParams<R> direction;  // alpha v of the link
  int64_t pass_bytes = 0;
  unsigned char* passes = nullptr;

  ConvInner(Queue& queue_, const Call& c, int64_t most, bool runs_back, bool keeps)
      : queue(queue_), call(c), net(c.shape), second_order(runs_back && !c.first_order) {
    for (const R* value : c.drates.value) asks_rates = asks_rates || (runs_back && value);
    convs = lay_out<R>(queue, net, most, true, second_order ? c.support.count : kNoTangents);
    if (second_order) direction = complete(queue, net, c.params, {});
    ConvPass<R> pass;
    pass_bytes = place_pass(pass, net, c.support.count, true, nullptr);
    const int64_t largest = place_pass(pass, net, most, true, nullptr);
    kept = keeps && (second_order || asks_rates) && c.steps && pass_bytes <= (kKeptBytes - largest) / c.steps;
    passes = queue.arena().template take<unsigned char>((kept ? c.steps * pass_bytes : 0) + largest);
  }

  // Of step k, with its support; with k = steps of another batch.
  ConvPass<R> pass(int64_t k, const Examples<R>& examples) const {
    ConvPass<R> found;
    place_pass(found, net, examples.count, true, passes ? passes + (kept ? k : 0) * pass_bytes : nullptr);
    found.load(examples);
    return found;
  }
  ConvPass<R> pass(int64_t k) const { return pass(k, call.support); }

  ConvPass<R> gradient(int64_t k, const ConvParams<const R>& theta) {
    ConvPass<R> found = pass(k);
    forward(queue, convs, found, theta);
    head(queue, convs, found, theta, {true, true, {}, true});
    backward(queue, convs, found, theta, 0);
    return found;
  }

  // next = theta - alpha g; they may be the same.
  void descend(int64_t k, const ConvParams<const R>& theta, const ConvParams<R>& next) {
    ConvPass<R> found = gradient(k, theta);
    ConvTargets<R> to;
    for (int i = 0; i < 4 * net.blocks + 2; i++) {
      const R* rates = rates_of(call.rates, i, int(tensor_size(net, i)), k, call.steps, 0);
      to.of[i] = {slices_of(next, i), -number_of(call.rates, i), slices_of(theta, i), {rates}, call.rates.per_element};
    }
    gradients(queue, convs, found, theta, to);
  }

  // Lets targets leave what they get times the rates of step k: the direction of its link.
  void aim(ConvTargets<R>& to, int64_t k) const {
    for (int i = 0; second_order && k >= 0 && i < 4 * net.blocks + 2; i++) {
      const R* rates = rates_of(call.rates, i, int(tensor_size(net, i)), k, call.steps, 0);
      to.then[i] = {slices_of(direction, i), number_of(call.rates, i), {}, {rates}, call.rates.per_element};
    }
  }

  // One link of the chain: next = v - H (alpha v), or nothing of it to first order; dalpha -= v g. g: memory for the rates' gradients.
  void link(int64_t k, const ConvParams<const R>& theta, const ConvParams<const R>& v, const ConvParams<R>& next, const ConvParams<R>& g) {
    const bool first = k == call.steps - 1;
    ConvPass<R> step = kept ? pass(k) : gradient(k, theta);
    if (asks_rates) rate_gradients(k, step, theta, v, g, first || call.drates.per_step);
    if (!second_order) return;
    const ConvParams<const R> along = as_const(direction);
    tangents_forward(queue, convs, step, theta, along);
    const ExampleGrads<R>& grads = call.support_grads;
    const TaskTensor<R> to_y{grads.dy, step.n * net.outputs}, to_x{grads.dx, step.n * net.example_size()};
    const Output<R> what{nullptr, {to_y, R(-1), {first ? nullptr : grads.dy, to_y.stride}}, true, nullptr, grads.dweights, true};
    head(queue, convs, step, theta, {true, true, what, false, true}, &along);
    tangents_backward(queue, convs, step, theta, along, 0);
    ConvTargets<R> to;
    for (int i = 0; i < 4 * net.blocks + 2; i++) to.of[i] = {slices_of(next, i), R(-1), slices_of(v, i)};
    to.dx = {to_x, R(-1), {first ? nullptr : grads.dx, to_x.stride}};
    aim(to, k - 1);
    gradients(queue, convs, step, theta, to, &along);
  }

  void rate_gradients(int64_t k, ConvPass<R>& step, const ConvParams<const R>& theta, const ConvParams<const R>& v, const ConvParams<R>& g,
                      bool first) {
    const ConvRates<R>& drates = call.drates;
    ConvTargets<R> to;
    for (int i = 0; i < 4 * net.blocks + 2; i++) {
      if (!drates.per_element) {
        to.of[i].out = slices_of(g, i);
        continue;
      }
      const int64_t size = tensor_size(net, i), stride = (drates.per_step ? call.steps : 1) * size;
      R* dalpha = rates_of(drates, i, int(size), k, call.steps, 0);
      to.of[i] = {{dalpha, stride}, R(-1), {first ? nullptr : dalpha, stride}, slices_of(v, i), true};
    }
    gradients(queue, convs, step, theta, to);
    if (!drates.per_element) sum_rates(queue, net, as_const(g), v, {drates, k, call.steps, first});
  }

  // The whole chain, from v at the last step's end, whose targets were aimed at the last step; `into`: where it then stands. theta(k): the
  // parameters before step k.
  template <class Theta>
  void run_back(ConvParams<const R> v, const ConvParams<R>& into, Theta&& theta) {
    zero_others();
    if (!second_order && !asks_rates) return;
    const ConvParams<R> g = asks_rates && !call.drates.per_element ? complete(queue, net, call.params, {}) : ConvParams<R>{};
    for (int64_t k = call.steps - 1; k >= 0; k--) {
      link(k, theta(k), v, into, g);
      if (second_order) v = as_const(into);
    }
  }

  // Gradients of which the chain has no term, and those that it adds to.
  void zero_others() {
    Scalings<R> what;
    const auto add = [&](R* out, int64_t size) {
      if (!out || !size) return;
      what.item[what.count++] = {{out, size}, {}, {}, false, size};
      if (what.count == int(sizeof(what.item) / sizeof(what.item[0]))) layerwise::scale(queue, net.tasks, what), what.count = 0;
    };
    const ExampleGrads<R>& grads = call.support_grads;
    if (!second_order || !call.steps) {
      add(grads.dx, call.support.count * net.example_size());
      add(grads.dy, call.support.count * net.outputs);
    }
    add(grads.dweights, call.support.count);  // the links subtract from it
    for (int i = 0; !call.steps && !call.drates.per_step && i < 4 * net.blocks + 2; i++)
      if (!i || !call.drates.shared) add(call.drates.value[i], call.drates.per_element ? tensor_size(net, i) : 1);
    layerwise::scale(queue, net.tasks, what);
  }
};

}  // namespace fastmeta::cuda::layerwise
