#include "emulator/fibers.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <new>

namespace fastmeta::emulation {
namespace {

constexpr size_t kGuard = 4096;
Fibers* starting = nullptr;

[[noreturn]] __attribute__((noinline)) void jump(void** registers) { __builtin_longjmp(registers, 1); }

// The compiler's own setjmp and longjmp: three words and no system call.
__attribute__((noinline)) void switch_to(void** from, void** to) {
  if (__builtin_setjmp(from) == 0) jump(to);
}

}  // namespace

struct Fiber {
  char* stack;
  void* registers[5];
  bool started = false, ended = true;

  Fiber() {
    void* memory = mmap(nullptr, Fibers::kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, kGuard, PROT_NONE);
    stack = static_cast<char*>(memory);
  }
  ~Fiber() { munmap(stack, Fibers::kStack); }
};

Fibers::Fibers() = default;
Fibers::~Fibers() = default;

void Fibers::grow(unsigned count) {
  while (fibers_.size() < count) fibers_.push_back(std::make_unique<Fiber>());
}

void Fibers::abandon() { fibers_.clear(); }

void Fibers::main() {
  Fibers& fibers = *starting;
  for (;;) {
    fibers.body_.call(fibers.body_.context);
    fibers.fibers_[fibers.current_]->ended = true;
    fibers.pause();
  }
}

void Fibers::pause() { switch_to(fibers_[current_]->registers, scheduler_); }

void Fibers::resume(unsigned number) {
  Fiber& fiber = *fibers_[number];
  current_ = number;
  stack_ = reinterpret_cast<uintptr_t>(fiber.stack);
  fiber.ended = false;
  if (fiber.started) return switch_to(scheduler_, fiber.registers);
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack;
  context.uc_stack.ss_size = Fibers::kStack - number * 5 % 61 * 192;  // stacks that begin alike would share lines of the cache
  context.uc_link = nullptr;
  makecontext(&context, &Fibers::main, 0);
  starting = this;
  if (__builtin_setjmp(scheduler_) == 0) setcontext(&context);
}

bool Fibers::ended(unsigned fiber) const { return fibers_[fiber]->ended; }

}  // namespace fastmeta::emulation
