// Problems in a file of doubles, as tools/arm/saved.py writes it: numbers, and arrays behind their length (-1: none), among them what a
// kernel is to write. A problem is drawn several times; then come the errors that its results may have, over all draws.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

class Saved {
 public:
  explicit Saved(const char* path) {
    std::FILE* file = std::fopen(path, "rb");
    if (!file) throw std::runtime_error(std::string("no file ") + path);
    for (double value; std::fread(&value, sizeof value, 1, file) == 1;) values_.push_back(value);
    std::fclose(file);
  }

  bool done() const { return at_ == values_.size(); }
  double number() { return values_.at(at_++); }
  int64_t integer() { return int64_t(number()); }

  // In memory of exactly its length; null: none.
  template <class X>
  X* array() {
    if (!begin()) return nullptr;
    const double* from = take();
    return keep(std::vector<X>(from, from + length_));
  }
  int64_t length() const { return length_; }  // of the last array or result

  // NaN, for a kernel to write over; null: not asked for.
  template <class X>
  X* result() {
    if (!begin()) return nullptr;
    const double* expected = take();
    X* found = keep(std::vector<X>(size_t(length_), std::numeric_limits<X>::quiet_NaN()));
    checks_.push_back([=, count = length_](Total& total) {
      total.count += count;
      for (int64_t i = 0; i < count; i++) {
        const bool same = std::isnan(found[i]) && std::isnan(expected[i]);
        const double error = same ? 0 : std::fabs(double(found[i]) - expected[i]);
        total.squares += error * error;
        if (!(error <= total.largest)) total.largest = error;
      }
    });
    return found;
  }

  void end_draw() {
    totals_.resize(checks_.size());
    for (size_t i = 0; i < checks_.size(); i++) checks_[i](totals_[i]);
    checks_.clear();
    memory_.clear();
  }

  // After a problem's draws: how many results are wrong over all of them. `rms`: by the root of the errors' mean square, else by the
  // largest.
  int wrong(bool rms) {
    int found = 0;
    for (const Total& total : totals_) {
      const double error = rms ? std::sqrt(total.squares / double(total.count)) : total.largest, allowed = number();
      if (error <= allowed) continue;
      std::printf("  error %.3e of %lld numbers, allowed %.3e\n", error, (long long)(total.count), allowed);
      found++;
    }
    totals_.clear();
    return found;
  }

 private:
  struct Total {
    double squares = 0, largest = 0;
    int64_t count = 0;
  };

  bool begin() { return (length_ = integer()) >= 0; }
  const double* take() {
    if (size_t(length_) > values_.size() - at_) throw std::runtime_error("the file must not end within an array");
    at_ += size_t(length_);
    return values_.data() + at_ - length_;
  }
  template <class X>
  X* keep(std::vector<X> values) {
    auto kept = std::make_shared<std::vector<X>>(std::move(values));
    memory_.push_back(kept);
    return kept->data();
  }

  std::vector<double> values_;
  std::vector<std::shared_ptr<void>> memory_;
  std::vector<std::function<void(Total&)>> checks_;
  std::vector<Total> totals_;
  size_t at_ = 0;
  int64_t length_ = 0;
};
