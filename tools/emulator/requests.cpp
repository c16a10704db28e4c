#include "emulator/requests.h"

#include <algorithm>
#include <set>

namespace fastmeta::emulation {
namespace {

constexpr unsigned kWarp = 32, kBanks = 32, kBankBytes = 4, kSector = 32;

uint64_t units(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit; }

}  // namespace

Requests requests;

void Requests::add(uint32_t site, unsigned lane, size_t buffer, size_t offset, size_t bytes, bool writes, bool shared) {
  Site& found = pending_[{site, shared}];
  found.shared = shared;
  found.writes = writes;
  const unsigned time = found.times[lane]++;
  if (found.requests.size() <= time) found.requests.resize(time + 1);
  found.requests[time].push_back({uint64_t(buffer) << 48 | offset, lane, unsigned(bytes)});
}

void Requests::warp_meets() {
  for (const auto& [place, site] : pending_)
    for (const Request& request : site.requests) count(site, request, tallies_[{kernel_, place}]);
  pending_.clear();
}

// Shared memory serves as many lanes at a time as ask for 128 bytes; those that ask for the same 4 bytes share them.
void Requests::count(const Site& site, const Request& request, Tally& tally) const {
  tally.shared = site.shared;
  tally.writes = site.writes;
  tally.requests++;
  std::set<uint64_t> bytes, sectors;
  std::map<uint64_t, std::set<uint64_t>> banks[kWarp];  // of each part of the warp
  for (const Lane& lane : request) {
    const unsigned part = lane.lane / std::min(kWarp, std::max(1u, kBanks * kBankBytes / std::max(lane.bytes, kBankBytes)));
    for (uint64_t at = lane.address; at < lane.address + lane.bytes; at++) {
      bytes.insert(at);
      sectors.insert(at / kSector);
      banks[part][at / kBankBytes % kBanks].insert(at / kBankBytes);
    }
  }
  if (!site.shared) {
    tally.cost += sectors.size();
    tally.best += units(bytes.size(), kSector);
    return;
  }
  for (const auto& part : banks) {
    size_t most = 0;
    for (const auto& [bank, words] : part) most = std::max(most, words.size());
    tally.cost += most;
    tally.best += most > 0;
  }
}

std::string Requests::table() const {
  std::string text;
  for (const auto& [key, t] : tallies_)
    for (uint64_t number :
         {uint64_t(key.first), uint64_t(key.second.first), uint64_t(t.shared), uint64_t(t.writes), t.requests, t.cost, t.best})
      text += std::to_string(number) + " ";
  return text;
}

}  // namespace fastmeta::emulation
