#pragma once

#include <compare>
#include <cstdint>
#include <limits>

// The integers that decisions are made of.

namespace weir::scheduler {

using RequestId = uint64_t;  // given by the shell, never reused
using TenantId = int32_t;    // index into Policy::tenants
using TokenId = int32_t;
using BlockId = int32_t;  // within one data-parallel group
using SlotId = int32_t;   // within one data-parallel group
using StepId = uint64_t;  // counts from 1 within an epoch
using Epoch = uint64_t;   // counts the lives of the worker group, from 1
using TimeUs = int64_t;   // comes with events; any origin, monotonic (jumps forward happen)

inline constexpr TimeUs kNever = std::numeric_limits<TimeUs>::max();

enum class PriorityClass : uint8_t { kInteractive, kStandard, kBatch };
inline constexpr int kNumPriorityClasses = 3;

// Names the content of one full block of prompt tokens: a keyed hash over (tenant namespace, parent key, tokens,
// model). Equal keys mean equal content that this tenant may see.  The core compares keys and never looks inside.
struct BlockKey {
  uint64_t high = 0;
  uint64_t low = 0;
  auto operator<=>(const BlockKey&) const = default;
};

}  // namespace weir::scheduler
