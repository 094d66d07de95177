#include "scheduler/service/step_pace.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace weir::scheduler {
namespace {

constexpr int32_t kMaxCount = 4096;  // then all counts are halved: old steps fade

int TimeOf(TimeUs us, int num_times) {
  const double halves = us < 1 ? 0 : 2 * std::log2(static_cast<double>(us));
  return std::min(static_cast<int>(halves), num_times - 1);
}

}  // namespace

int StepPace::SizeOf(int64_t num_rows) {
  return std::min(static_cast<int>(std::bit_width(static_cast<uint64_t>(std::max<int64_t>(num_rows, 1)))) - 1,
                  kNumSizes - 1);
}

void StepPace::Record(int64_t num_rows, TimeUs took_us) {
  Size& size = sizes_[SizeOf(num_rows)];
  ++size.counts[TimeOf(took_us, kNumTimes)];
  if (++size.num < kMaxCount) return;
  size.num = 0;
  for (int32_t& count : size.counts) size.num += count /= 2;
}

// The upper end of the class of times in which the 99th percentile lies.
TimeUs StepPace::Slowest(const Size& size) const {
  int32_t left = size.num / 100;  // may be slower
  for (int time = kNumTimes - 1; time > 0; --time) {
    left -= size.counts[time];
    if (left < 0) return static_cast<TimeUs>(std::exp2((time + 1) / 2.0));
  }
  return 1;
}

// A size without enough steps is judged by the next smaller one: in proportion to rows, which is more than it takes,
// since part of a step's time does not grow with rows.
TimeUs StepPace::DeadlineUs(int64_t num_rows) const {
  const int wanted = SizeOf(num_rows);
  for (int size = wanted; size >= 0; --size) {
    if (sizes_[size].num < kEnough) continue;
    const TimeUs expected = Slowest(sizes_[size]) << (wanted - size);
    return std::max(min_us_, 5 * expected);
  }
  return std::max(min_us_, unknown_us_);
}

}  // namespace weir::scheduler
