// Counts how the warps of a kernel reach memory. What the lanes of a warp access at one instruction, each at its n-th time since
// the warp last met, is one request: in 32-byte sectors of global memory, or in wavefronts of shared memory, whose 32 banks
// give 4 bytes each a wavefront. Beside either stands what the bytes asked for would have taken at best.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace fastmeta::emulation {

struct Tally {
  bool shared = false, writes = false;
  uint64_t requests = 0, cost = 0, best = 0;  // in sectors or wavefronts
};

class Requests {
 public:
  bool counting = false;
  void clear() { tallies_.clear(); }
  void begin_launch(uint32_t kernel) {
    kernel_ = kernel;
    pending_.clear();
  }
  // `offset`: from the beginning of a buffer, which is aligned.
  void add(uint32_t site, unsigned lane, size_t buffer, size_t offset, size_t bytes, bool writes, bool shared);
  void warp_meets();
  std::string table() const;  // of each kernel and site seven numbers: their places in the module, shared, writes, and the sums

 private:
  struct Lane {
    uint64_t address;  // with the buffer
    unsigned lane, bytes;
  };
  using Request = std::vector<Lane>;
  struct Site {
    bool shared = false, writes = false;
    unsigned times[32] = {};
    std::vector<Request> requests;  // of the warp that runs, by occurrence
  };
  void count(const Site& site, const Request& request, Tally& tally) const;

  uint32_t kernel_ = 0;
  std::map<std::pair<uint32_t, bool>, Site> pending_;                        // by site and kind of memory
  std::map<std::pair<uint32_t, std::pair<uint32_t, bool>>, Tally> tallies_;  // of each kernel
};

extern Requests requests;

}  // namespace fastmeta::emulation
