#include "emulator/sites.h"

#include <dlfcn.h>

#include <cstdio>

namespace fastmeta::emulation {
namespace {

Dl_info module_info() {
  Dl_info info{};
  dladdr(reinterpret_cast<const void*>(&site_of), &info);
  return info;
}

const Dl_info module_ = module_info();

}  // namespace

uint32_t site_of(const void* instruction) {
  return uint32_t(static_cast<const char*>(instruction) - static_cast<const char*>(module_.dli_fbase));
}

std::string source_line(uint32_t site) {
  char offset[32], text[1024] = "";
  std::snprintf(offset, sizeof offset, "0x%x", site - 1);  // in the call, not behind it
  const std::string command = std::string("addr2line -s -e '") + module_.dli_fname + "' " + offset + " 2>/dev/null";
  if (FILE* pipe = popen(command.c_str(), "r")) {
    if (!std::fgets(text, sizeof text, pipe)) text[0] = 0;
    pclose(pipe);
  }
  std::string found(text);
  while (!found.empty() && found.back() == '\n') found.pop_back();
  return found.empty() || found[0] == '?' ? offset : found.substr(0, found.find(" ("));
}

}  // namespace fastmeta::emulation
