// Finds what a kernel does wrong with memory, whatever the order in which its threads happen to run. Every access is judged
// against all earlier ones of its launch: two accesses to one byte, one of them a write, are a race unless a barrier lies
// between them: __syncthreads in a block, __syncwarp in a warp (a shuffle orders no memory), nothing between blocks. Accesses
// must lie in a buffer that the launch was given; inputs must not be written; other memory must be written before it is read,
// and outputs must be written. The compiler reports the accesses: see accesses.cpp.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fastmeta::emulation {

enum class Kind { input, output, scratch, shared };

struct Moment {             // where a thread stands
  uint32_t interval = 0;    // counts the barriers of all blocks, from 1
  uint16_t warp_clock = 0;  // counts __syncwarp
  uint16_t thread = 0;
};

struct Access : Moment {
  uint32_t site = 0;  // the instruction, from the beginning of the module
};

class Checker {
 public:
  // The buffers of the next launches; `element`: bytes that are accessed as a whole.
  void clear();
  void add(const void* memory, int64_t bytes, int element, const char* name, Kind kind);

  void begin_launch(uint32_t interval);  // orders all that was before it; forgets the last one's shared memory
  void begin_block(uint32_t interval);
  void access(uintptr_t address, size_t bytes, bool writes, const Moment& moment, const void* instruction);
  void end();  // of the launches: outputs must be complete
  std::string findings() const;

 private:
  struct Cell {  // what happened to one element
    Access writer, reader;
    Access other_lane, other_warp, other_block;  // readers before `reader`, elsewhere, with no barrier between
  };
  struct Buffer {
    uintptr_t begin, end;
    int element;
    const char* name;
    Kind kind;
    std::vector<Cell> cells;  // none for inputs: reads alone do not race
  };
  Buffer* find(uintptr_t address, size_t bytes);
  void judge(Buffer& buffer, size_t element, bool writes, const Access& access);
  bool concurrent(const Buffer& buffer, const Access& earlier, const Access& now) const;
  void report(const char* what, const std::string& where, const Access& now, const Access* earlier);
  std::string place(const Buffer& buffer, uintptr_t address) const;

  std::vector<Buffer> buffers_;
  size_t recent_ = 0;
  uint32_t launch_begins_ = 0, block_begins_ = 0;
  std::vector<std::string> findings_;
  std::vector<uint64_t> reported_;
};

extern Checker checker;
extern bool instrumented;  // whether accesses are reported at all

}  // namespace fastmeta::emulation
