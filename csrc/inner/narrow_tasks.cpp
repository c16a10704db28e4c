#include "inner/narrow_tasks.h"

#include "runtime/cpu/kernels.h"
#include "runtime/parallel.h"

namespace fastmeta {

// Numbers of some tasks: they stay in the last cache. Numbers that a thread takes at once. (Neither tuned further.)
constexpr int64_t kRoomNumbers = 1 << 20, kWidenGrain = 1 << 14;

void NarrowArrays::add(const float* at, int64_t size, Numbers numbers, bool written) {
  if (!at || numbers == Numbers::wide) return;
  arrays_.push_back({reinterpret_cast<uint16_t*>(const_cast<float*>(at)), size, numbers == Numbers::shared, written, nullptr});
}

int64_t NarrowArrays::make_room(int64_t tasks, int64_t least) {
  int64_t of_task = 0, of_all = 0;
  for (const Array& a : arrays_) (a.shared ? of_all : of_task) += a.size;
  const int64_t found = std::min(tasks, std::max(least, kRoomNumbers / (1 + of_task)));
  room_.reset(new float[size_t(of_all + found * of_task)]);
  float* room = room_.get();
  for (Array& a : arrays_) {
    a.room = room, room += a.shared ? a.size : found * a.size;
    if (a.shared) cpu<float>().widen(as_, a.numbers, a.size, a.room);
  }
  return found;
}

void NarrowArrays::widen(int64_t first, int64_t count) const {
  for (const Array& a : arrays_)
    if (!a.shared && !a.written)
      parallel_for(count * a.size, kWidenGrain, [&](int64_t begin, int64_t end) {
        cpu<float>().widen(as_, a.numbers + first * a.size + begin, end - begin, a.room + begin);
      });
}

void NarrowArrays::round(int64_t first, int64_t count) const {
  for (const Array& a : arrays_)
    if (a.written)
      parallel_for(count * a.size, kWidenGrain, [&](int64_t begin, int64_t end) {
        cpu<float>().narrow(as_, a.room + begin, end - begin, a.numbers + first * a.size + begin);
      });
}

}  // namespace fastmeta
