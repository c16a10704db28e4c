// A torch tensor as the extension sees it: a Python object and its DLPack view. No libtorch.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "runtime/python.h"
#include "runtime/stored.h"

namespace fastmeta {

// ABI of DLPack 1.x (dlpack.h), the part that is read here.
struct DLDevice {
  int32_t type, id;
};
struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

enum class DType { float32, float64, int64, float16, bfloat16 };

class Tensor {
 public:
  Tensor() = default;
  // Views `object` (None gives an empty Tensor); copies it first where its values do not lie in its memory one after the other.
  // TypeError unless it is a tensor of float32, float64, int64, float16 or bfloat16 with memory of its own.
  // `turned`, unless null: matrices that lie by columns stay where they are; it becomes true and shape() theirs as they lie, by rows.
  Tensor(const char* op, py::handle object, const char* name, bool* turned = nullptr);

  explicit operator bool() const { return bool(object_); }
  py::object object() const { return object_ ? object_ : py::none(); }
  template <class R>
  R* data() const {
    return static_cast<R*>(data_);
  }
  // Its numbers for kernels that compute in R: float where they have 16 bits.
  template <class R>
  Stored<R> stored() const {
    return {static_cast<R*>(data_), dtype_ == DType::float16    ? Storage::float16
                                    : dtype_ == DType::bfloat16 ? Storage::bfloat16
                                                                : Storage::wide};
  }
  DType dtype() const { return dtype_; }
  bool narrow() const { return dtype_ == DType::float16 || dtype_ == DType::bfloat16; }
  bool on_cpu() const { return device_ == 1; }
  bool on_cuda() const { return device_ == 2; }
  int device_index() const { return index_; }
  int64_t dim() const { return int64_t(shape_.size()); }
  int64_t size(int64_t axis) const { return shape_[size_t(axis < 0 ? axis + dim() : axis)]; }
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t numel() const;
  int64_t item_size() const { return narrow() ? 2 : dtype_ == DType::float32 ? 4 : 8; }

  // The `shape` elements from element `offset` on, in this one's memory; not a torch tensor of its own.
  Tensor part(int64_t offset, const std::vector<int64_t>& shape) const;

  // An uninitialised tensor with this one's dtype and device: a new one, or one that the caller has given (given.h).
  Tensor empty(const std::vector<int64_t>& shape) const;

 private:
  void resolve(const char* op, const char* name);
  void view(const char* op, const char* name, bool* turned = nullptr);

  py::object object_;
  void* data_ = nullptr;
  DType dtype_ = DType::float32;
  int device_ = 1, index_ = 0;  // device_: DLPack's number, 1 for the CPU, 2 for CUDA
  std::vector<int64_t> shape_;
  bool is_part_ = false;
};

// A tensor of the dtype that CPU kernels compute in for `like`: of float32 where it has 16 bits.
const Tensor& computed_in(const Tensor& like);

// The view of a tensor whose values lie in its memory in strides; false for another one, and where torch has no exchange table.
bool view_in_memory(py::handle tensor, DLTensor& view);
// The bytes from a tensor's first element to its last; false where they are not told.
bool memory_of(py::handle tensor, const char*& begin, const char*& end);

// Takes torch.Tensor and, where torch has it, the table of C functions that makes a view cost 50 ns.
void init_tensor(py::handle tensor_class, bool exchange_api);
// How to tell a tensor whose memory is not its value, such as a negation that torch does later: by the bits of its dispatch keys that
// are not in `plain`. They are `keys` bytes behind the address that lies `impl` bytes into the Python object; `keys` < 0: unknown, so
// that every tensor may be one. `in_memory(tensor)` gives the same values in memory, or None where it cannot.
void init_values(py::handle in_memory, Py_ssize_t impl, Py_ssize_t keys, uint64_t plain);

// The current stream of the tensor's CUDA device, as a cudaStream_t.
void* current_stream(const Tensor& tensor);
// Whether float32 products on CUDA, "matmul" or "conv", may be in TF32: fastmeta/_precision.py.
bool allows_tf32(const char* products);

// ValueError "<op>: <what> must have shape [...], got [...]" unless the shapes agree.
void require_shape(const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& shape);
// TypeError unless every non-empty tensor has the first one's device, and its dtype where it is floating.
void require_alike(const char* op, std::initializer_list<const Tensor*> tensors);

}  // namespace fastmeta
