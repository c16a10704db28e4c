#include "runtime/warm.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>

namespace fastmeta {
namespace {

struct Block {
  void* data;
  size_t bytes;
  int missed = 0;  // how often since its last use another did not fit
};

constexpr size_t kHuge = 2 << 20;
constexpr size_t kMostBlocks = 4;  // free ones: what forward kept and both passes' work, of one encoder

std::mutex mutex;
// Kept for the life of the process: a tensor may be freed after static objects have gone.
std::vector<Block>& blocks() {
  static auto* found = new std::vector<Block>();
  return *found;
}

Block take(size_t bytes) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    std::vector<Block>& list = blocks();
    auto best = list.end();
    for (auto it = list.begin(); it != list.end(); ++it)
      if (it->bytes >= bytes && it->bytes / 2 <= bytes && (best == list.end() || it->bytes < best->bytes)) best = it;
    if (best != list.end()) {
      const Block found{best->data, best->bytes};
      list.erase(best);
      return found;
    }
    const auto stale = std::partition(list.begin(), list.end(), [](Block& block) { return ++block.missed < int(kMostBlocks); });
    for (auto it = stale; it != list.end(); ++it) std::free(it->data);
    list.erase(stale, list.end());
  }
  const size_t rounded = (bytes + kHuge - 1) / kHuge * kHuge;
  void* data = std::aligned_alloc(kHuge, rounded);
  if (!data) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(data, rounded, MADV_HUGEPAGE);
#endif
  return {data, rounded};
}

void give_back(Block block) {
  const std::lock_guard<std::mutex> lock(mutex);
  std::vector<Block>& list = blocks();
  list.push_back(block);
  if (list.size() <= kMostBlocks) return;
  std::free(list.front().data);
  list.erase(list.begin());
}

struct Managed {  // DLManagedTensor of dlpack.h, and what it needs
  DLTensor tensor;
  void* context;
  void (*deleter)(Managed*);
  int64_t shape, stride;
  Block block;
};

}  // namespace

Tensor warm_tensor(const Tensor& like, int64_t count) {
  const Block block = take(size_t(std::max<int64_t>(count, 1) * like.item_size()));
  auto* made = new Managed{};
  made->block = block, made->shape = count, made->stride = 1;
  made->deleter = [](Managed* managed) {
    give_back(managed->block);
    delete managed;
  };
  made->tensor.data = block.data;
  made->tensor.device.type = 1;
  made->tensor.ndim = 1;
  made->tensor.dtype.code = 2, made->tensor.dtype.bits = uint8_t(8 * like.item_size()), made->tensor.dtype.lanes = 1;
  made->tensor.shape = &made->shape, made->tensor.strides = &made->stride;
  PyObject* capsule = PyCapsule_New(made, "dltensor", [](PyObject* owner) {  // torch renames it once the tensor owns the memory
    if (!PyCapsule_IsValid(owner, "dltensor")) return;
    auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(owner, "dltensor"));
    managed->deleter(managed);
  });
  if (!capsule) throw py::error_already_set();
  static PyObject* from_dlpack = py::object(py::import_module("torch").attr("from_dlpack")).release().ptr();
  const py::object owner = py::reinterpret_steal<py::object>(capsule);
  PyObject* tensor = PyObject_CallOneArg(from_dlpack, owner.ptr());
  if (!tensor) throw py::error_already_set();
  return Tensor("fastmeta._C", py::reinterpret_steal<py::object>(tensor), "memory");
}

}  // namespace fastmeta
