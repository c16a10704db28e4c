#include "inner/conv_call.h"

namespace fastmeta {
ConvCall::ConvCall(const char* op_, Handle params_, Handle inputs_, Handle blocks, Str loss_, const Shape& lead_)
    : NetworkCall(op_, inputs_, 3, loss_, lead_), shape{} {
  const auto specs = read_list(op, "blocks", blocks);
  if (specs.empty() || specs.size() > size_t(kMaxConvs)) throw py::value_error(std::string(op) + ": blocks must be 1 to 16");
  const Tensors given = read_tensors(op, "params", params_, inputs.narrow());
  const size_t last = 4 * specs.size();
  const bool features = op == std::string(kOps.forward) && given.size() == last + 2 && !given[last] && !given[last + 1];
  if (given.size() != last + 2 || (!features && (!given[last] || given[last].dim() < 2 || given[last].size(-2) < 1)))
    throw py::value_error(std::string(op) + ": params must hold 4 for each of blocks and 2 for the linear layer");
  shape.tasks = tasks, shape.loss = loss;
  if (features && (!inputs.on_cpu() || !cpu<float>().conv_features_fwd))
    throw py::value_error(std::string(op) + ": params must have a linear layer but on a CPU");
  if (inputs.dtype() == DType::float32 && by_cuda()) shape.tf32 = allows_tf32("conv");
  Shape image = example;
  for (size_t l = 0; l < specs.size(); l++) {
    read_block(specs[l], given[4 * l], image);
    const ConvBlock& b = shape.block[l];
    if (!features && (b.skip || b.slope != 0))
      throw py::value_error(std::string(op) + ": blocks must have no skip and no slope, but of an encoder");
    if (features && b.kernel != 3 && (b.kernel != 1 || b.padding))
      throw py::value_error(std::string(op) + ": blocks of an encoder must have kernels 3 x 3, or 1 x 1 without padding");
    if (!features && b.kernel != 3 && by_cuda()) throw py::value_error(std::string(op) + ": blocks must have kernels 3 x 3 but on a CPU");
    if (b.norm == ConvNorm::none && (given[4 * l + 2] || given[4 * l + 3]))
      throw py::value_error(std::string(op) + ": params must have no norm's where there is none");
    for (size_t i = 0; i < 4; i++) add_param(given[4 * l + i]);
    image = {b.out, b.out_height(), b.out_width()};
  }
  shape.outputs = features ? 0 : given[last].size(-2);
  if (shape.by_mean && (features || by_cuda()))
    throw py::value_error(std::string(op) + ": blocks must have a pool that is a number but before a linear layer on a CPU");
  outputs = features ? image[0] * image[1] * image[2] : shape.outputs;
  for (size_t i = 0; i < 2; i++) add_param(given[last + i]);
  ConvCall::require_examples(count());
}

void ConvCall::read_block(Handle spec, const Tensor& weight, const Shape& image) {
  const py::tuple fields(py::reinterpret_borrow<py::object>(spec));
  if (fields.size() != 9) throw py::value_error(std::string(op) + ": blocks must hold 9 numbers each");
  if (!weight || weight.dim() < 4) throw py::value_error(std::string(op) + ": params must hold kernels [out, in, side, side]");
  ConvBlock& b = shape.block[shape.blocks++];
  const bool by_groups = is_number(fields[2]);
  const int l = shape.blocks - 1;
  b.skip = fields[8].cast<int64_t>();
  if (b.skip < 0 || b.skip == 1 || b.skip > l)
    throw py::value_error(std::string(op) + ": blocks must skip none or two and more before them");
  b.in = image[0], b.height = image[1], b.width = image[2], b.out = weight.size(-4);
  if (b.skip) {
    const ConvBlock& source = shape.block[l - b.skip];
    b.in = source.in, b.height = source.height, b.width = source.width;
  }
  if (shape.by_mean) throw py::value_error(std::string(op) + ": blocks must have a pool that is a number but in the last one");
  shape.by_mean = !is_number(fields[5]);  // "mean"
  b.stride = fields[0].cast<int64_t>(), b.padding = fields[1].cast<int64_t>();
  b.norm = by_groups ? ConvNorm::group : fields[2].is_none() ? ConvNorm::none : ConvNorm::batch;
  b.groups = by_groups ? fields[2].cast<int64_t>() : b.out;
  b.eps = fields[3].cast<double>(), b.relu = fields[4].cast<bool>(), b.pool = shape.by_mean ? 1 : fields[5].cast<int64_t>();
  b.slope = fields[6].cast<double>(), b.kernel = fields[7].cast<int64_t>();
  const bool known = b.stride >= 1 && b.padding >= 0 && b.padding <= kMostPadding && b.pool >= 1 && b.pool <= kMostPool && b.groups >= 1 &&
                     b.kernel >= 1 && b.padding < b.kernel;
  const int64_t least = known ? std::min(b.height, b.width) + 2 * b.padding : 0;
  if (b.skip) require_summand(l, image);
  if (least < b.kernel || least < 1 || b.in < 1 || b.out < 1 || b.out % b.groups || b.out_height() < 1 || b.out_width() < 1)
    throw py::value_error(std::string(op) +
                          ": blocks must have a stride, padding up to 2 and below the kernel's side, groups that divide the channels, pool "
                          "1 or 2, and leave a pixel");
}

// What block l adds must be what the block before it gives, of the shape `image`.
void ConvCall::require_summand(int l, const Shape& image) const {
  const ConvBlock &b = shape.block[l], &before = shape.block[l - 1];
  const bool fits = b.out == image[0] && b.conv_height() == image[1] && b.conv_width() == image[2];
  if (!fits || before.relu || before.pool > 1 || before.skip || shape.block[l - b.skip].skip || shape.block[l - b.skip].padding < b.padding)
    throw py::value_error(std::string(op) + ": blocks that skip must add to what the block before them gives, without relu and pool");
}

void ConvCall::require_examples(int64_t examples) const {
  for (int l = 0; l < shape.blocks; l++) {
    const ConvBlock& b = shape.block[l];
    if (b.norm == ConvNorm::batch && examples * b.conv_height() * b.conv_width() < 2)
      throw py::value_error(std::string(op) + ": norm must be over more than one value, got a batch of " + std::to_string(examples));
  }
}

Shape ConvCall::core(int tensor) const {
  if (tensor < 4 * shape.blocks) {
    const ConvBlock& b = shape.block[tensor / 4];
    return tensor % 4 ? Shape{b.out} : Shape{b.out, b.in, b.kernel, b.kernel};
  }
  return tensor % 4 ? Shape{outputs} : Shape{outputs, shape.features()};
}

}  // namespace fastmeta
