// Instructions of this module as 32-bit numbers, and their lines in the source.
#pragma once
#include <cstdint>
#include <string>

namespace fastmeta::emulation {

uint32_t site_of(const void* instruction);
std::string source_line(uint32_t site);  // by addr2line; where there is none, the offset in the module

}  // namespace fastmeta::emulation
