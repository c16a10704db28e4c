// An encoder on one batch of images (conv_forward without a linear layer): its features, all threads on the images, and the gradients
// from what forward has kept. Batch norm divides a block into two passes over the images, forward (the convolution and the statistics;
// the rest) and back (the sums of the gradients; the gradients).
//
// A convolution is done by tiles (conv_tiles.h), or image by image where it has a stride or few channels (convolve.h). What is summed over
// images is summed of each image first, or of at most kRuns runs of them, whatever the threads, so that no bit depends on these.
#pragma once
#include <vector>

#include "inner/cpu/conv_network.h"
#include "inner/cpu/conv_tiles.h"
#include "inner/cpu/norm_add_relu_pool.h"

namespace fastmeta::FASTMETA_ISA {

// Enough for the cores of a large machine, and few enough that the kernels' gradients, one of each run, stay in cache.
constexpr int64_t kRuns = 32;
// Bytes of a kernel's gradient at points up to which each run sums its own; of numbers at points that a thread has in hand, and the
// tiles at least; of those of which larger gradients are made at once. Made for 1 MiB of second
// cache a core and 32 MiB of third (AMD EPYC); other sizes were not tried.
constexpr int64_t kOwnGradient = 1 << 19, kBand = 1 << 19, kBandTiles = 64, kShared = 24 << 20;
constexpr int64_t kTiledChannels = 16;  // from as many on 3 x 3 kernels are done by tiles

inline bool is_tiled(const ConvNet& net, int l) {
  const ConvBlock& b = net.block[l];
  return b.kernel == 1 || (b.stride == 1 && l > b.skip && least(b.in, b.out) >= kTiledChannels);
}

// Places in memory for what lives from one step to another, both included: as few as there must be.
class Places {
 public:
  int take(int from, int until) {
    size_t k = 0;
    while (k < until_.size() && until_[k] >= from) k++;
    if (k == until_.size()) until_.push_back(until);
    until_[k] = until;
    return int(k);
  }
  int count() const { return int(until_.size()); }

 private:
  std::vector<int> until_;
};

template <class R>
class ConvEncoder {
 public:
  // With a null `kept` and `work` it only measures. The layout has no kernels of blocks that are done by tiles.
  ConvEncoder(const ConvFeatures<R>& call, const ConvLayout<R>& layout, bool backward, Scratch& kept, Scratch& work);

  void forward(int64_t t);
  void backward(int64_t t);

 private:
  struct Block {
    BlockShape<R> shape;
    ConvTiles tiles;
    bool tiled;
    int source;  // the block whose input it takes: itself, but where it skips
    int other;   // the block whose outputs and its own are added before relu; -1: none
    int dout;    // the block whose gradient it takes: itself, but where the next one adds
    R *x, *z, *top;
    R* points;  // of the kernel; backward: turned around
    std::vector<Norm<R>> norms;
  };
  // A thread's memory.
  struct Room {
    R *zeros, *unread, *row, *dz, *v, *m;
  };

  const ConvBlock& net(int l) const { return layout_.net.block[l]; }
  const Block& at(int l) const { return blocks_[size_t(l)]; }
  bool is_batch(int l) const { return net(l).norm == ConvNorm::batch; }
  bool is_added(int l) const { return l < last_ && net(l + 1).skip; }  // by the next block
  int64_t channels(int l) const { return layout_.block[l].out; }
  const Norm<R>& norm(int l, int64_t i) const { return of_sets(at(l).norms, i); }
  template <class P>
  P* of(P* block, int l, ConvTensor tensor) const {
    const int64_t begin = layout_.block[l].begin[tensor];
    return begin < 0 ? nullptr : block + begin;
  }
  R* x(int l, int64_t i) const { return at(l).x + i * at(l).shape.x_size; }
  R* z(int l, int64_t i) const { return at(l).z + i * at(l).shape.z_size; }
  R* top(int l, int64_t i) const { return at(l).top + i * at(l).shape.dense_size; }
  Summand<R> summand(int l, int64_t i) const { return {z(l, i), norm(l, i), top(l, i)}; }
  // The gradient to what block l hands on, dense; to the images for l = -1.
  R* d(int l, int64_t i) const { return slots_[size_t(slot_[l + 1])] + i * d_size(l); }
  int64_t d_size(int l) const;
  int to(int l) const { return at(l).source - 1; }  // the block that hands on what l takes
  bool begins(int l) const { return first_to_[to(l) + 1] == l; }
  bool wants_dx(int l) const { return to(l) >= 0 || call_.dx; }
  bool by_runs(int l) const { return !at(l).tiled || at(l).tiles.weights() * int64_t(sizeof(R)) <= kOwnGradient; }

  Block block_of(int l) const;
  void place_numbers(bool keeps, Scratch& kept, Scratch& work);
  void place_sums(Scratch& work);
  void place_gradients(Scratch& work);
  int64_t band(int l) const;     // tiles that a thread has in hand
  int64_t group(int l) const;    // images
  int64_t at_once(int l) const;  // images whose numbers at points are `shared_`
  Room room(int l, Scratch& scratch) const;
  void load_points(int l, int64_t t, bool turned);
  void load(int64_t t, bool turned);

  // f(group, room) for the groups of [begin, end) in ranges: calls f(first, end, room) for `images` after each other.
  template <class F>
  void for_each_group(int l, int64_t begin, int64_t end, int64_t images, F&& f) const {
    const int64_t cost = images * net(l).multiply_adds();
    parallel_ranges((end - begin + images - 1) / images, 1 + kTaskGrain / (1 + cost), [&](Ranges& ranges) {
      int64_t from, to;
      if (!ranges.next(from, to)) return;
      Scratch measure(nullptr);
      room(l, measure);
      Scratch scratch(thread_arena(size_t(measure.used())));
      const Room own = room(l, scratch);
      std::memset(own.zeros, 0, size_t(widest_) * sizeof(R));
      do {
        for (int64_t k = from; k < to; k++) f(begin + k * images, least(end, begin + (k + 1) * images), own);
      } while (ranges.next(from, to));
    });
  }

  void convolve_group(int l, int64_t t, int64_t first, int64_t end, const Room& room) const;
  void convolve_images(int l, int64_t t);
  void merge_statistics(int l, int64_t t);
  void hand_on(int l, int64_t i, R* row, int64_t t) const;

  void load_gradients(int64_t t);
  void sum_image(int l, int64_t i, const Norm<R>& sums) const;
  void sum_gradients(int l);
  void gradient_to_z(int l, int64_t i, R* dz) const;
  void gradients_of_image(int l, int64_t i, const Room& room, R* dkernel) const;
  void gradients_of_group(int l, int64_t first, int64_t end, const Room& room, R* dkernel, int64_t from, int64_t images) const;
  void add_products(int l, AtPoints<R> v, AtPoints<R> m, int64_t count, int64_t point, int64_t begin, int64_t end, R* du, bool adds) const;
  void gradients_by_runs(int l);
  void gradients_at_once(int l);
  void add_sums(int l, int64_t t);
  void store_images(int64_t t) const;

  const ConvFeatures<R>& call_;
  const ConvLayout<R>& layout_;
  const int64_t n_, run_, runs_;  // run_: images of one
  const int last_;
  std::vector<Block> blocks_;
  std::vector<Norm<R>> of_images_;  // the sums of a norm
  int64_t widest_ = 0, run_size_ = 0;
  R *theta_, *grad_ = nullptr;
  R* sums_[3] = {};                                               // gradients to bias, gamma, beta of images, [n, widest]
  R *of_runs_ = nullptr, *kernel_ = nullptr, *shared_ = nullptr;  // gradients to a kernel; numbers at points
  std::vector<R*> slots_;
  int slot_[kMaxConvs + 1] = {}, first_to_[kMaxConvs + 1] = {};  // of d; the block that begins it
};

}  // namespace fastmeta::FASTMETA_ISA
