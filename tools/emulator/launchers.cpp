// The table of kernels that the Python-facing functions of the networks' ops ask for, filled with the emulated CUDA launchers. Each
// call tells the checker the launcher's buffers, to the byte.
#include <algorithm>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

#include "runtime/cuda/kernels.h"
#include "runtime/cpu/kernels.h"
#include "emulator/checker.h"
#include "emulator/emulator.h"

namespace fastmeta {
namespace emulation {
namespace {

template <class P>
constexpr Kind kind_of(P*) {
  return std::is_const_v<P> ? Kind::input : Kind::output;
}

template <class P>
void add(P* memory, int64_t count, const char* name) {
  checker.add(memory, count * int64_t(sizeof(P)), sizeof(P), name, kind_of(memory));
}

int64_t size_of(const MlpShape& s, int tensor) {
  const int64_t out = s.width[tensor / 2 + 1];
  return tensor % 2 ? out : out * s.width[tensor / 2];
}
int64_t size_of(const ConvNet& s, int tensor) { return tensor_size(s, tensor); }
int tensors(const MlpShape& s) { return 2 * s.layers; }
int tensors(const ConvNet& s) { return 4 * s.blocks + 2; }

template <class P>
std::pair<P*, int64_t> slices_of(const MlpParams<P>& params, int tensor) {
  const int l = tensor / 2;
  return tensor % 2 ? std::pair{params.bias[l], params.bias_stride[l]} : std::pair{params.weight[l], params.weight_stride[l]};
}
template <class P>
std::pair<P*, int64_t> slices_of(const ConvParams<P>& params, int tensor) {
  return {params.value[tensor], params.stride[tensor]};
}

template <class N, class Params>
void add_params(const N& s, const Params& params, const char* name) {
  for (int tensor = 0; tensor < tensors(s); tensor++) {
    const auto [value, stride] = slices_of(params, tensor);
    add(value, (stride ? s.tasks : 1) * size_of(s, tensor), name);
  }
}

template <class N, class P, int count>
void add_rates(const N& s, const Rates<P, count>& rates, int64_t steps, const char* name) {
  const int64_t copies = (std::is_const_v<P> ? 1 : s.tasks) * (rates.per_step ? steps : 1);
  for (int tensor = 0; tensor < (rates.shared ? 1 : tensors(s)); tensor++)
    add(rates.value[tensor], copies * (rates.per_element ? size_of(s, tensor) : 1), name);
}

template <class N, class R>
void add_examples(const N& s, const Examples<R>& examples, const char* inputs, const char* targets) {
  const int64_t count = s.tasks * examples.count;
  add(examples.x, count * s.example_size(), inputs);
  if (s.loss == Loss::mse) add(static_cast<const R*>(examples.y), count * s.output_size(), targets);
  else add(static_cast<const int64_t*>(examples.y), count, targets);
  add(examples.weights, count, "weights");
}

template <class N, class R>
void add_grads(const N& s, const ExampleGrads<R>& grads, int64_t count, const char* dx, const char* dy) {
  add(grads.dx, s.tasks * count * s.example_size(), dx);
  add(grads.dy, s.tasks * count * s.output_size(), dy);
  add(grads.dweights, s.tasks * count, "dweights");
}

template <class R, class N>
void add(const ForwardCall<R, N>& c) {
  const N& s = c.shape;
  add_params(s, c.params, "params");
  add(c.x, s.tasks * c.count * s.example_size(), "x");
  add(c.out, s.tasks * c.count * s.output_size(), "out");
  add(c.dout, s.tasks * c.count * s.output_size(), "dout");
  add_params(s, c.dparams, "dparams");
  add(c.dx, s.tasks * c.count * s.example_size(), "dx");
}

template <class C>
void add_differentiated(const C& c) {
  add_params(c.shape, c.params, "params");
  add_examples(c.shape, c.examples, "x", "y");
  add_params(c.shape, c.dparams, "dparams");
  add_grads(c.shape, c.grads, c.examples.count, "dx", "dy");
}

template <class R, class N>
void add(const LossCall<R, N>& c) {
  add_differentiated(c);
  add(c.loss, c.shape.tasks, "loss");
}

template <class R, class N>
void add(const CurvatureCall<R, N>& c) {
  add_differentiated(c);
  add_params(c.shape, c.vectors, "vectors");
  add(c.dloss, c.shape.tasks, "dloss");
}

template <class R, class N>
void add(const AdaptCall<R, N>& c) {
  const N& s = c.shape;
  int64_t parameters = 0;
  for (int tensor = 0; tensor < tensors(s); tensor++) parameters += slices_of(c.params, tensor).first ? size_of(s, tensor) : 0;
  const int64_t kept = s.tasks * c.steps * parameters;
  add_params(s, c.params, "params");
  add_rates(s, c.rates, c.steps, "rate");
  add_examples(s, c.support, "x", "y");
  if (slices_of(c.adapted, 0).first) add(c.trajectory, kept, "trajectory");
  else add(static_cast<const R*>(c.trajectory), kept, "trajectory");
  add_params(s, c.adapted, "adapted");
  add_params(s, c.dadapted, "cotangent of adapted");
  add_params(s, c.dparams, "dparams");
  add_rates(s, c.drates, c.steps, "drate");
  add_grads(s, c.support_grads, c.support.count, "dx", "dy");
}

template <class R, class N>
void add(const MetaLossCall<R, N>& c) {
  const N& s = c.shape;
  add_params(s, c.params, "params");
  add_rates(s, c.rates, c.steps, "rate");
  add_examples(s, c.support, "support x", "support y");
  add_examples(s, c.query, "query x", "query y");
  add(c.loss, s.tasks, "loss");
  if constexpr (std::is_same_v<N, ConvNet>) add(c.outputs, s.tasks * c.query.count * s.outputs, "outputs");
  add_params(s, c.dparams, "dparams");
  add_rates(s, c.drates, c.steps, "drate");
  add_grads(s, c.support_grads, c.support.count, "support dx", "support dy");
  add_grads(s, c.query_grads, c.query.count, "query dx", "query dy");
}

// Around the launches of one call.
std::unique_lock<std::mutex> begin() {
  static std::mutex one_at_a_time;  // of all threads of Python
  std::unique_lock<std::mutex> lock(one_at_a_time);
  checker.clear();
  return lock;
}

void end(const char* error) {
  if (error) throw std::runtime_error(std::string("the CUDA launch must succeed, got ") + error);
  finish();
}

template <class Arguments, const char* (*launcher)(const Arguments&, void*, void*), int64_t (*workspace)(const Arguments&)>
void emulated(const Arguments& arguments) {
  const auto lock = begin();
  const int64_t bytes = workspace(arguments);
  const std::unique_ptr<unsigned char[]> memory(new unsigned char[size_t(bytes)]);
  std::fill_n(memory.get(), bytes, 0xff);
  add(arguments);
  checker.add(memory.get(), bytes, 4, "workspace", Kind::scratch);
  end(launcher(arguments, memory.get(), stream()));
}

// Out of a copy, because the checker knows no memory that is read before it is written.
template <class R>
void task_scale(const TaskScale<R>& given) {
  TaskScale<R> p = given;
  std::vector<std::vector<R>> units;
  const auto lock = begin();
  for (int i = 0; i < p.count; i++) {
    auto& array = p.arrays[i];
    units.emplace_back(array.unit, array.unit + p.T * array.size);
    array.unit = units.back().data();
    add(array.unit, p.T * array.size, "unit");
    add(array.out, (array.shared ? 1 : p.T) * array.size, "scaled");
  }
  add(p.dloss, p.T, "dloss");
  end(cuda::task_scale(p, stream()));
}

#define EMULATED(NETWORK, NAME, ARGUMENTS) emulated<ARGUMENTS<R>, cuda::NETWORK##_##NAME<R>, cuda::NETWORK##_##NAME##_workspace<R>>
#define EMULATED_NETWORK(NETWORK, NAME)                                                             \
  {                                                                                                 \
      EMULATED(NETWORK, forward_fwd, NAME##Forward), EMULATED(NETWORK, forward_bwd, NAME##Forward), \
      EMULATED(NETWORK, loss, NAME##Loss),           EMULATED(NETWORK, hvp, NAME##Curvature),       \
      EMULATED(NETWORK, adapt_fwd, NAME##Adapt),     EMULATED(NETWORK, adapt_bwd, NAME##Adapt),     \
      EMULATED(NETWORK, meta_loss, NAME##MetaLoss)}

template <class R>
CpuKernels<R> emulated_table() {
  CpuKernels<R> table{};
  table.task_scale = task_scale<R>;
  table.mlp = EMULATED_NETWORK(mlp, Mlp);
  table.conv = EMULATED_NETWORK(conv, Conv);
  table.emulates_cuda = true;
  return table;
}

const CpuKernels<float> float32 = emulated_table<float>();
const CpuKernels<double> float64 = emulated_table<double>();

}  // namespace
}  // namespace emulation

template <>
const CpuKernels<float>& cpu<float>() {
  return emulation::float32;
}
template <>
const CpuKernels<double>& cpu<double>() {
  return emulation::float64;
}

}  // namespace fastmeta
