#pragma once

#include <array>
#include <cstdint>

#include "scheduler/core/types.h"

// How long steps take here, and so how long one may take before its ranks count as hung: five times the 99th percentile
// of steps of its size, and never less than a floor.  Sizes are powers of two of rows: a step of a thousand prompt rows
// is no reason to wait long for one of ten.

namespace weir::scheduler {

class StepPace {
 public:
  // min_us: the floor.  unknown_us: for sizes of which nothing is known (ranks still touch their weights for the first
  // time).
  StepPace(TimeUs min_us, TimeUs unknown_us) : min_us_(min_us), unknown_us_(unknown_us) {}

  void Record(int64_t num_rows, TimeUs took_us);
  // The longest that a step of this size may go without a result.
  TimeUs DeadlineUs(int64_t num_rows) const;

 private:
  static constexpr int kNumSizes = 20;
  static constexpr int kNumTimes = 64;  // half powers of two of microseconds
  static constexpr int kEnough = 8;     // steps that make a percentile worth something
  struct Size {
    std::array<int32_t, kNumTimes> counts = {};
    int32_t num = 0;
  };
  static int SizeOf(int64_t num_rows);
  TimeUs Slowest(const Size& size) const;

  const TimeUs min_us_;
  const TimeUs unknown_us_;
  std::array<Size, kNumSizes> sizes_;
};

}  // namespace weir::scheduler
