#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/core/types.h"

// One step's work, as plain data.  The shell adds token ids and sampling parameters, which it holds by request.

namespace weir::scheduler {

// Token positions [first_position, first_position + num_tokens) of one sequence.
struct PlannedWork {
  RequestId id = 0;
  int32_t dp_group = 0;
  SlotId slot = 0;
  bool is_new = false;  // first work since it was admitted (again): the slot knows nothing of it yet
  int32_t first_position = 0;
  int32_t num_tokens = 0;
  int32_t num_prompt_rows = 0;  // of them, below the sequence's prompt length
  bool takes_sampled_token =
      false;                    // its one token is the one sampled for this slot by the step before, not yet known here
  bool samples = false;         // the last position's row chooses the next token
  int32_t first_new_block = 0;  // entry of the block table at which new blocks begin
  int32_t blocks_begin = 0;     // new blocks: StepPlan::blocks[blocks_begin, blocks_end)
  int32_t blocks_end = 0;       // with is_new these are the whole table, cached prefix included
};

struct ReleasedSlot {
  int32_t dp_group = 0;
  SlotId slot = 0;
};

struct StepPlan {
  Epoch epoch = 0;
  StepId step = 0;
  std::vector<PlannedWork> work;  // by dp_group, then in order of scheduling
  std::vector<BlockId> blocks;
  std::vector<ReleasedSlot> released;  // slots whose sequence is gone since the last plan; reusable in this one
  int32_t num_prompt_rows = 0;         // rows below their sequence's prompt length
  int32_t num_generated_rows = 0;

  void Clear() {
    work.clear();
    blocks.clear();
    released.clear();
    num_prompt_rows = num_generated_rows = 0;
    epoch = step = 0;
  }
};

}  // namespace weir::scheduler
