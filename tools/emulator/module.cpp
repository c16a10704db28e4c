// The Python module of the emulated ops of networks, built by the tests: the extension's own functions on the table of launchers.cpp.
#include "inner/network_bindings.h"
#include "runtime/tensor.h"
#include "emulator/emulator.h"
#include "emulator/requests.h"

namespace {

namespace emulation = fastmeta::emulation;

void set_device(int multiprocessors, int shared_per_block) {
  const int reserved = emulation::Device{}.shared_reserved;
  emulation::set_device({multiprocessors, shared_per_block, shared_per_block + reserved, reserved});
}

}  // namespace

PYBIND11_MODULE(emulated, m) {
  using namespace fastmeta;
  pybind11::register_local_exception_translator(&translate);
  m.def("init_tensor", &init_tensor);
  m.def("init_values", &init_values);
  m.def("set_device", &set_device);
  m.def("launches", &emulation::launches);
  m.def("set_runs", &emulation::set_runs);
  m.def("opt_ins", &emulation::opt_ins);
  m.def("set_order", [](const std::string& order, uint64_t seed) {
    emulation::set_order(order == "reverse"  ? emulation::Order::reverse
                         : order == "random" ? emulation::Order::random
                                             : emulation::Order::forward,
                         seed);
  });
  m.def("count_requests", [](bool counting) {
    emulation::requests.clear();
    emulation::requests.counting = counting;
  });
  m.def("requests", [] { return emulation::requests.table(); });
  define_network<MlpCall>(m, "mlp");
  define_network<ConvCall>(m, "conv");
}
