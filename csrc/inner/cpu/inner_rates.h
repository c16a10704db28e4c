// The learning rates of an inner loop and the gradients to them, for any network: its layout has for_each_tensor(), load_block,
// store_block, and rates_at(), which gives a step's rates of each element as parameters.
#pragma once
#include "inner/cpu/network.h"
#include "inner/cpu/matmul.h"

namespace fastmeta::FASTMETA_ISA {

// sum a * b over matrices [rows, width].
template <class R>
R inner_product(const R* a, const R* b, int64_t rows, int64_t width) {
  const int64_t ld = padded<R>(width), whole = width / kLanes<R> * kLanes<R>;
  Vector<R> total = {};
  for (int64_t i = 0; i < rows; i++) {
    Vector<R> sum = {};
    for (int64_t j = 0; j < whole; j += kLanes<R>) sum += load(a + i * ld + j) * load(b + i * ld + j);
    if (whole < width) sum += first_lanes<R>(load(a + i * ld + whole) * load(b + i * ld + whole), width - whole);
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
      add(k, tensor, -inner_product(grad + begin, v + begin, rows, width));
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
