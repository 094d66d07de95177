#pragma once

#include <chrono>
#include <cstdint>

namespace weir::gateway {

// Microseconds of the steady clock, which no one sets.
using TimeUs = int64_t;

inline TimeUs NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace weir::gateway
