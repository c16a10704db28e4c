// Which instruction set the CPU kernels use: the best that the processor has, chosen when the module is imported.
#include <stdexcept>

#include "runtime/cpu/kernels.h"

namespace fastmeta {
namespace {

struct Isa {
  const char* name;
  const CpuKernels<float>* float32;
  const CpuKernels<double>* float64;
};

std::vector<Isa> runnable() {
  std::vector<Isa> found{{"baseline", &baseline::float32, &baseline::float64}};
#ifdef FASTMETA_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
    found.push_back({"avx2", &avx2::float32, &avx2::float64});
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd"))
    found.push_back({"avx512", &avx512::float32, &avx512::float64});
#endif
  return found;
}

const std::vector<Isa> available = runnable();
Isa current = available.back();

}  // namespace

template <>
const CpuKernels<float>& cpu<float>() {
  return *current.float32;
}
template <>
const CpuKernels<double>& cpu<double>() {
  return *current.float64;
}

std::string isa() { return current.name; }

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Isa& each : available) names.push_back(each.name);
  return names;
}

void set_isa(const std::string& name) {
  for (const Isa& each : available)
    if (each.name == name) {
      current = each;
      return;
    }
  throw std::invalid_argument("set_isa: name must be an instruction set that this processor has, got " + name);
}

}  // namespace fastmeta
