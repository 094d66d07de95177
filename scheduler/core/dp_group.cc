#include "scheduler/core/dp_group.h"

namespace weir::scheduler {

DpGroup::DpGroup(int32_t num_blocks, int32_t num_slots) : pool(num_blocks), slots(num_slots) {
  free_slots.reserve(num_slots);
  for (SlotId slot = num_slots - 1; slot >= 0; --slot) free_slots.push_back(slot);
  decoding.reserve(2 * static_cast<size_t>(num_slots));
  work.reserve(num_slots);
  work_in_flight.reserve(num_slots);
}

}  // namespace weir::scheduler
