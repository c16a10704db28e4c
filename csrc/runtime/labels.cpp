#include "runtime/arguments.h"
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

py::object empty_class(Handle object, int64_t num_classes) {
  const char* op = "empty_class";
  const Tensor labels = read_int64(op, "labels", object);
  require_cpu(op, {&labels});
  if (labels.dim() < 1) throw py::value_error("empty_class: labels must have at least 1 dimension, got 0");
  const int64_t S = labels.size(-1);
  std::vector<bool> seen(size_t(num_classes > 0 ? num_classes : 0));
  int64_t tasks = 1;
  for (int64_t axis = 0; axis + 1 < labels.dim(); axis++) tasks *= labels.size(axis);
  for (int64_t task = 0; task < tasks; task++) {
    std::fill(seen.begin(), seen.end(), false);
    for (int64_t s = 0; s < S; s++) {
      const int64_t label = labels.data<int64_t>()[task * S + s];
      if (label >= 0 && label < num_classes) seen[size_t(label)] = true;
    }
    const auto empty = std::find(seen.begin(), seen.end(), false);
    if (empty != seen.end()) return py::make_tuple(task, empty - seen.begin());
  }
  return py::none();
}

}  // namespace fastmeta
