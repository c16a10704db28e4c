// Fibers: functions on stacks of their own that hand the processor to each other. They are started once and run one body after
// another, as long as each body comes to its end.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace fastmeta::emulation {

struct Body {
  void (*call)(const void* context);
  const void* context;
};

struct Fiber;

class Fibers {
 public:
  Fibers();
  ~Fibers();
  void set_body(Body body) { body_ = body; }
  void resume(unsigned fiber);  // runs it until it calls pause (true) or its body ends
  void pause();                 // in a fiber: back to who resumed it
  unsigned current() const { return current_; }
  bool ended(unsigned fiber) const;                                             // or has not begun
  bool on_stack(uintptr_t address) const { return address - stack_ < kStack; }  // of the current fiber
  void grow(unsigned count);
  void abandon();  // forgets fibers in the middle of a body

  static constexpr size_t kStack = 256 * 1024;

 private:
  static void main();
  std::vector<std::unique_ptr<Fiber>> fibers_;
  Body body_{};
  unsigned current_ = 0;
  uintptr_t stack_ = 0;
  void* scheduler_[5];
};

}  // namespace fastmeta::emulation
