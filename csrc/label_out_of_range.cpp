#include "arguments.h"
#include "ops.h"

namespace fastmeta {
namespace {

struct Rule {
  uint64_t num_classes;
  bool ignores;
  int64_t ignored;

  bool wrong(int64_t label) const { return (uint64_t(label) >= num_classes) & !(ignores & (label == ignored)); }
};

}  // namespace

py::object label_out_of_range(Handle object, int64_t num_classes, Handle ignore_index) {
  const char* op = "label_out_of_range";
  const Tensor labels = read_int64(op, "labels", object);
  require_cpu(op, {&labels});
  const bool ignores = !ignore_index.is_none();
  const Rule rule{num_classes > 0 ? uint64_t(num_classes) : 0, ignores, ignores ? ignore_index.cast<int64_t>() : 0};
  const int64_t count = labels.numel(), *data = labels.data<int64_t>();
  bool any_wrong = false;
  for (int64_t i = 0; i < count; i++) any_wrong |= rule.wrong(data[i]);
  for (int64_t i = 0; any_wrong && i < count; i++)
    if (rule.wrong(data[i])) return py::int_(data[i]);
  return py::none();
}

}  // namespace fastmeta
