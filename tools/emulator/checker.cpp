#include "emulator/checker.h"

#include <algorithm>

#include "emulator/requests.h"
#include "emulator/sites.h"

namespace fastmeta::emulation {
namespace {

constexpr size_t kMostFindings = 12;
constexpr uint32_t kWarp = 32;

}  // namespace

Checker checker;
bool instrumented = false;

void Checker::clear() {
  buffers_.clear();
  findings_.clear();
  reported_.clear();
  recent_ = 0;
}

void Checker::add(const void* memory, int64_t bytes, int element, const char* name, Kind kind) {
  if (!memory || bytes <= 0) return;
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const size_t cells = instrumented && kind != Kind::input ? size_t((bytes + element - 1) / element) : 0;
  buffers_.push_back({begin, begin + size_t(bytes), element, name, kind, std::vector<Cell>(cells)});
}

void Checker::begin_launch(uint32_t interval) {
  launch_begins_ = interval;
  const auto shared = [](const Buffer& buffer) { return buffer.kind == Kind::shared; };
  buffers_.erase(std::remove_if(buffers_.begin(), buffers_.end(), shared), buffers_.end());
  recent_ = 0;
}

void Checker::begin_block(uint32_t interval) {
  block_begins_ = interval;
  for (Buffer& buffer : buffers_)
    if (buffer.kind == Kind::shared) std::fill(buffer.cells.begin(), buffer.cells.end(), Cell{});
}

Checker::Buffer* Checker::find(uintptr_t address, size_t bytes) {
  const auto inside = [&](const Buffer& b) { return address >= b.begin && address + bytes <= b.end; };
  if (recent_ < buffers_.size() && inside(buffers_[recent_])) return &buffers_[recent_];
  for (recent_ = 0; recent_ < buffers_.size(); recent_++)
    if (inside(buffers_[recent_])) return &buffers_[recent_];
  return nullptr;
}

void Checker::access(uintptr_t address, size_t bytes, bool writes, const Moment& moment, const void* instruction) {
  Access now{moment, site_of(instruction)};
  Buffer* buffer = find(address, bytes);
  if (!buffer) {
    const auto distance = [&](const Buffer& b) { return address < b.begin ? b.begin - address : address + bytes - b.end; };
    const auto nearest =
        std::min_element(buffers_.begin(), buffers_.end(), [&](const Buffer& a, const Buffer& b) { return distance(a) < distance(b); });
    const bool known = nearest != buffers_.end();
    return report(writes ? "write out of bounds" : "read out of bounds", known ? place(*nearest, address) : "no buffer", now, nullptr);
  }
  if (requests.counting)
    requests.add(now.site, now.thread % kWarp, size_t(buffer - buffers_.data()), address - buffer->begin, bytes, writes,
                 buffer->kind == Kind::shared);
  if (buffer->kind == Kind::input) return writes ? report("write to an input", place(*buffer, address), now, nullptr) : void();
  const size_t first = (address - buffer->begin) / size_t(buffer->element);
  const size_t last = (address + bytes - 1 - buffer->begin) / size_t(buffer->element);
  for (size_t element = first; element <= last; element++) judge(*buffer, element, writes, now);
}

// Whether no barrier lies between the two.
bool Checker::concurrent(const Buffer& buffer, const Access& earlier, const Access& now) const {
  if (earlier.interval < launch_begins_) return false;
  if (earlier.interval < block_begins_) return buffer.kind != Kind::shared;
  if (earlier.thread == now.thread || earlier.interval != now.interval) return false;
  return earlier.thread / kWarp != now.thread / kWarp || earlier.warp_clock == now.warp_clock;
}

void Checker::judge(Buffer& buffer, size_t element, bool writes, const Access& now) {
  Cell& cell = buffer.cells[element];
  if (!writes && cell.reader.interval == now.interval && cell.reader.thread == now.thread && cell.reader.warp_clock == now.warp_clock)
    return;  // judged before
  const auto where = [&] { return place(buffer, buffer.begin + element * size_t(buffer.element)); };
  if (concurrent(buffer, cell.writer, now))
    report(writes ? "race of two writes" : "race of a write and a read", where(), now, &cell.writer);
  if (!writes) {
    if (!cell.writer.interval) report("read of uninitialised memory", where(), now, nullptr);
    if (concurrent(buffer, cell.reader, now)) {
      const bool block = cell.reader.interval < block_begins_, warp = cell.reader.thread / kWarp != now.thread / kWarp;
      (block ? cell.other_block : warp ? cell.other_warp : cell.other_lane) = cell.reader;
    }
    cell.reader = now;
    return;
  }
  for (const Access* reader : {&cell.reader, &cell.other_lane, &cell.other_warp, &cell.other_block})
    if (concurrent(buffer, *reader, now)) report("race of a read and a write", where(), now, reader);
  cell.writer = now;
}

void Checker::end() {
  for (const Buffer& buffer : buffers_) {
    if (buffer.kind != Kind::output || !instrumented) continue;
    for (size_t i = 0; i < buffer.cells.size(); i++) {
      if (buffer.cells[i].writer.interval) continue;
      findings_.push_back("an output that is never written: " + place(buffer, buffer.begin + i * size_t(buffer.element)));
      break;
    }
  }
}

std::string Checker::place(const Buffer& buffer, uintptr_t address) const {
  const int64_t offset = int64_t(address - buffer.begin), element = buffer.element;
  return std::string(buffer.name) + " at byte " + std::to_string(offset) + " of " + std::to_string(buffer.end - buffer.begin) +
         (element > 1 ? " (element " + std::to_string(offset / element) + ")" : "");
}

void Checker::report(const char* what, const std::string& where, const Access& now, const Access* earlier) {
  const uint64_t key = uint64_t(now.site) << 32 | (earlier ? earlier->site : 0);
  if (findings_.size() >= kMostFindings || std::find(reported_.begin(), reported_.end(), key) != reported_.end()) return;
  reported_.push_back(key);
  std::string text = std::string(what) + ": " + where + ", by thread " + std::to_string(now.thread) + " at " + source_line(now.site);
  if (earlier)
    text += ", and by thread " + std::to_string(earlier->thread) + (earlier->interval < block_begins_ ? " of another block" : "") + " at " +
            source_line(earlier->site);
  findings_.push_back(text);
}

std::string Checker::findings() const {
  std::string text;
  for (const std::string& finding : findings_) text += "\n  " + finding;
  return text;
}

}  // namespace fastmeta::emulation
