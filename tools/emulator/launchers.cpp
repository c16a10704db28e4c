// The table of kernels that the Python-facing functions of the mlp ops ask for, filled with the emulated CUDA launchers. Each
// call tells the checker the launcher's buffers, to the byte.
#include <algorithm>
#include <memory>
#include <mutex>
#include <stdexcept>
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

template <class P>
void add(const MlpShape& s, const MlpParams<P>& params, const char* weights, const char* biases) {
  for (int l = 0; l < s.layers; l++) {
    add(params.weight[l], (params.weight_stride[l] ? s.tasks : 1) * size_of(s, 2 * l), weights);
    add(params.bias[l], (params.bias_stride[l] ? s.tasks : 1) * size_of(s, 2 * l + 1), biases);
  }
}

template <class P>
void add(const MlpShape& s, const MlpRates<P>& rates, int64_t steps, const char* name) {
  const int64_t copies = (std::is_const_v<P> ? 1 : s.tasks) * (rates.per_step ? steps : 1);
  for (int tensor = 0; tensor < (rates.shared ? 1 : 2 * s.layers); tensor++)
    add(rates.value[tensor], copies * (rates.per_element ? size_of(s, tensor) : 1), name);
}

template <class R>
void add(const MlpShape& s, const Examples<R>& examples, const char* inputs, const char* targets) {
  const int64_t count = s.tasks * examples.count;
  add(examples.x, count * s.width[0], inputs);
  if (s.loss == Loss::mse) add(static_cast<const R*>(examples.y), count * s.width[s.layers], targets);
  else add(static_cast<const int64_t*>(examples.y), count, targets);
  add(examples.weights, count, "weights");
}

template <class R>
void add(const MlpShape& s, const ExampleGrads<R>& grads, int64_t count, const char* dx, const char* dy) {
  add(grads.dx, s.tasks * count * s.width[0], dx);
  add(grads.dy, s.tasks * count * s.width[s.layers], dy);
  add(grads.dweights, s.tasks * count, "dweights");
}

template <class R>
void add(const MlpForward<R>& c) {
  const MlpShape& s = c.shape;
  add(s, c.params, "weight", "bias");
  add(c.x, s.tasks * c.count * s.width[0], "x");
  add(c.out, s.tasks * c.count * s.width[s.layers], "out");
  add(c.dout, s.tasks * c.count * s.width[s.layers], "dout");
  add(s, c.dparams, "dweight", "dbias");
  add(c.dx, s.tasks * c.count * s.width[0], "dx");
}

template <class C>
void add_differentiated(const C& c) {
  add(c.shape, c.params, "weight", "bias");
  add(c.shape, c.examples, "x", "y");
  add(c.shape, c.dparams, "dweight", "dbias");
  add(c.shape, c.grads, c.examples.count, "dx", "dy");
}

template <class R>
void add(const MlpLoss<R>& c) {
  add_differentiated(c);
  add(c.loss, c.shape.tasks, "loss");
}

template <class R>
void add(const MlpCurvature<R>& c) {
  add_differentiated(c);
  add(c.shape, c.vectors, "weight vector", "bias vector");
  add(c.dloss, c.shape.tasks, "dloss");
}

template <class R>
void add(const MlpAdapt<R>& c) {
  const MlpShape& s = c.shape;
  int64_t parameters = 0;
  for (int tensor = 0; tensor < 2 * s.layers; tensor++) parameters += tensor % 2 == 0 || c.params.bias[tensor / 2] ? size_of(s, tensor) : 0;
  const int64_t kept = s.tasks * c.steps * parameters;
  add(s, c.params, "weight", "bias");
  add(s, c.rates, c.steps, "rate");
  add(s, c.support, "x", "y");
  if (c.adapted.weight[0]) add(c.trajectory, kept, "trajectory");
  else add(static_cast<const R*>(c.trajectory), kept, "trajectory");
  add(s, c.adapted, "adapted weight", "adapted bias");
  add(s, c.dadapted, "cotangent of the adapted weight", "cotangent of the adapted bias");
  add(s, c.dparams, "dweight", "dbias");
  add(s, c.drates, c.steps, "drate");
  add(s, c.support_grads, c.support.count, "dx", "dy");
}

template <class R>
void add(const MlpMetaLoss<R>& c) {
  const MlpShape& s = c.shape;
  add(s, c.params, "weight", "bias");
  add(s, c.rates, c.steps, "rate");
  add(s, c.support, "support x", "support y");
  add(s, c.query, "query x", "query y");
  add(c.loss, s.tasks, "loss");
  add(s, c.dparams, "dweight", "dbias");
  add(s, c.drates, c.steps, "drate");
  add(s, c.support_grads, c.support.count, "support dx", "support dy");
  add(s, c.query_grads, c.query.count, "query dx", "query dy");
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

#define EMULATED(NAME, ARGUMENTS) emulated<ARGUMENTS<R>, cuda::mlp_##NAME<R>, cuda::mlp_##NAME##_workspace<R>>

template <class R>
CpuKernels<R> emulated_table() {
  CpuKernels<R> table{};
  table.task_scale = task_scale<R>;
  table.mlp = {EMULATED(forward_fwd, MlpForward), EMULATED(forward_bwd, MlpForward), EMULATED(loss, MlpLoss),
               EMULATED(hvp, MlpCurvature),       EMULATED(adapt_fwd, MlpAdapt),     EMULATED(adapt_bwd, MlpAdapt),
               EMULATED(meta_loss, MlpMetaLoss)};
  table.mlp_adapt_keeps = table.mlp_tf32 = true;
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
