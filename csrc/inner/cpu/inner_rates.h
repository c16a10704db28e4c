// The learning rates of an inner loop and the gradients to them, for any network: its layout has for_each_tensor(), load_block,
// store_block, and rates_at(), which gives a step's rates of each element as parameters.
#pragma once
#include "inner/cpu/network.h"
#include "inner/cpu/matmul.h"

namespace fastmeta::FASTMETA_ISA {

// The sum of at(i), a vector from number i of a matrix [rows, width] on.
template <class R, class F>
R sum_of_matrix(int64_t rows, int64_t width, F&& at) {
  const int64_t ld = padded<R>(width), whole = width / kLanes<R> * kLanes<R>;
  Vector<R> total = {};
  for (int64_t i = 0; i < rows; i++) {
    Vector<R> sum = {};
    for (int64_t j = 0; j < whole; j += kLanes<R>) sum += at(i * ld + j);
    if (whole < width) sum += first_lanes<R>(at(i * ld + whole), width - whole);
    total += sum;
  }
  return sum_lanes<R>(total);
}

// The learning rates of a call, those of each element as blocks; the same for all tasks.
template <class R, class N>
class InnerRates {
 public:
  InnerRates(const LayoutOf<R, N>& layout, const RatesOf<const R, N>& rates, int64_t steps, Scratch& scratch)
      : layout_(layout), rates_(rates), kinds_(rates.per_step ? steps : 1) {
    blocks_ = rates.per_element ? scratch.take<R>(kinds_ * layout.size) : nullptr;
    for (int64_t k = 0; blocks_ && k < kinds_; k++) load_block(layout, rates_at(layout, rates, k), 0, blocks_ + k * layout.size);
  }

  // Where not each element has a rate of its own.
  R of_tensor(int64_t k, int tensor) const {
    const int i = rates_.shared ? 0 : tensor;
    return rates_.value[i] ? rates_.value[i][kinds_ > 1 ? k : 0] : rates_.number[i];
  }

  // out = base - alpha_k * x; without a base, -alpha_k * x. Blocks of gradients.
  void descend(int64_t k, const R* base, const R* x, R* out) const {
    if (rates_.per_element) {
      const R* alpha = blocks_ + (kinds_ > 1 ? k : 0) * layout_.size;
      if (base)
        for (int64_t i = 0; i < layout_.gradient; i++) out[i] = base[i] - alpha[i] * x[i];
      else
        for (int64_t i = 0; i < layout_.gradient; i++) out[i] = -(alpha[i] * x[i]);
      return;
    }
    layout_.for_each_tensor([&](int tensor, int64_t begin, int64_t rows, int64_t width) {
      const R alpha = of_tensor(k, tensor);
      const int64_t end = begin + rows * padded<R>(width);
      if (base)
        for (int64_t i = begin; i < end; i++) out[i] = base[i] - alpha * x[i];
      else
        for (int64_t i = begin; i < end; i++) out[i] = -(alpha * x[i]);
    });
  }

  // Calls f(begin, count, alpha_k, whether it is one number) for the spans of a block of gradients.
  template <class F>
  void for_each_span(int64_t k, F&& f) const {
    if (rates_.per_element) return f(int64_t(0), layout_.gradient, blocks_ + (kinds_ > 1 ? k : 0) * layout_.size, false);
    layout_.for_each_tensor([&](int tensor, int64_t begin, int64_t rows, int64_t width) {
      const R alpha = of_tensor(k, tensor);
      f(begin, rows * padded<R>(width), &alpha, true);
    });
  }

 private:
  const LayoutOf<R, N>& layout_;
  const RatesOf<const R, N>& rates_;
  int64_t kinds_;  // steps that have rates of their own
  R* blocks_;
};

// The gradients to the rates, of one task at a time.
template <class R, class N>
class RateGradients {
 public:
  RateGradients(const LayoutOf<R, N>& layout, const RatesOf<R, N>& drates, int64_t steps, Scratch& scratch)
      : layout_(layout), drates_(drates), kinds_(drates.per_step ? steps : 1) {
    for (const R* value : drates.value) asked_ = asked_ || value;
    blocks_ = asked_ && drates.per_element ? scratch.take<R>(kinds_ * layout.gradient) : nullptr;
    sums_ = asked_ ? scratch.take<R>(kinds_ * N::kTensors) : nullptr;
  }

  bool asked() const { return asked_; }

  void clear() {
    for (int64_t i = 0; blocks_ && i < kinds_ * layout_.gradient; i++) blocks_[i] = 0;
    for (int64_t i = 0; sums_ && i < kinds_ * N::kTensors; i++) sums_[i] = 0;
  }

  void add(int64_t k, const R* grad, const R* v) {  // -= grad * v
    if (blocks_) {
      R* to = blocks_ + (kinds_ > 1 ? k : 0) * layout_.gradient;
      for (int64_t i = 0; i < layout_.gradient; i++) to[i] -= grad[i] * v[i];
      return;
    }
    layout_.for_each_tensor([&](int tensor, int64_t begin, int64_t rows, int64_t width) {
      const R sum = sum_of_matrix<R>(rows, width, [&](int64_t i) { return load(grad + begin + i) * load(v + begin + i); });
      add(k, tensor, -sum);
    });
  }
  void add(int64_t k, const R* products) {  // += products
    if (blocks_) {
      R* to = blocks_ + (kinds_ > 1 ? k : 0) * layout_.gradient;
      for (int64_t i = 0; i < layout_.gradient; i++) to[i] += products[i];
      return;
    }
    layout_.for_each_tensor([&](int tensor, int64_t begin, int64_t rows, int64_t width) {
      add(k, tensor, sum_of_matrix<R>(rows, width, [&](int64_t i) { return load(products + begin + i); }));
    });
  }
  void add(int64_t k, int tensor, R value) { sums(k)[drates_.shared ? 0 : tensor] += value; }

  void store(int64_t task) const {
    if (!asked_) return;
    for (int64_t k = 0; blocks_ && k < kinds_; k++)
      store_block(layout_, blocks_ + k * layout_.gradient, rates_at(layout_, drates_, task * kinds_ + k), 0);
    for (int64_t k = 0; !blocks_ && k < kinds_; k++)
      for (int tensor = 0; tensor < N::kTensors; tensor++)
        if (drates_.value[tensor]) drates_.value[tensor][task * kinds_ + k] = sums(k)[tensor];
  }

 private:
  R* sums(int64_t k) const { return sums_ + (kinds_ > 1 ? k : 0) * N::kTensors; }

  const LayoutOf<R, N>& layout_;
  const RatesOf<R, N>& drates_;
  int64_t kinds_;
  bool asked_ = false;
  R *blocks_, *sums_;  // rates of each element; of each tensor
};

}  // namespace fastmeta::FASTMETA_ISA
