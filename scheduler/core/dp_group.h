#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/core/block_pool.h"
#include "scheduler/core/buffer_pool.h"
#include "scheduler/core/sequence.h"
#include "scheduler/core/step_plan.h"
#include "scheduler/core/steps_in_flight.h"

// One data-parallel group: its blocks, its slots, and who sits in them.

namespace weir::scheduler {

// A place in the workers' memory.  The slot, not the sequence, owns blocks: when a sequence ends while a step that
// touches it is in flight, the slot drains, and gives slot and blocks back when that step has completed.
struct Slot {
  SequenceIndex sequence = kNoSequence;  // kNoSequence: free or draining
  StepId last_step = 0;                  // when vacated: the last step with work for this slot
  bool is_draining = false;
  IntBuffer block_table;
};

struct DpGroup {
  explicit DpGroup(int32_t num_blocks, int32_t num_slots);

  BlockPool pool;
  std::vector<Slot> slots;
  std::vector<SlotId> free_slots;     // the last is handed out next
  std::vector<SequenceRef> decoding;  // in order of admission to decoding; those that left are skipped and swept
  int32_t num_running = 0;
  int32_t num_prefilling = 0;       // of them
  int64_t num_promised_blocks = 0;  // sum over its sequences
  int64_t num_pinned_blocks = 0;    // all that its pinned sequences can ever need
  int64_t num_draining_blocks = 0;  // in the tables of draining slots

  // ---- of the planning pass under way ----
  std::vector<PlannedWork> work;
  std::vector<WorkInFlight> work_in_flight;  // the same, as it is remembered
  int32_t budget = 0;                        // rows that may still be planned
  bool is_pressed = false;                   // a running sequence found no block: nobody is admitted
  int32_t num_prefilling_left = 0;           // not yet served
  int32_t num_held_blocks = 0;               // for a claimant, against tenants too far ahead of it
  double max_counter_unheld = 0;             // who counts as too far ahead
  int64_t num_counting_on_draining = 0;      // sequences that wait for a draining slot's block

  // Blocks that nobody holds and nobody running counts on.
  int64_t num_room() const { return pool.num_available() - num_promised_blocks; }
};

}  // namespace weir::scheduler
