#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "worker/model/slots.h"
#include "worker/step_plan.h"

// A step's plan as the integers of a kernels::BatchLayout: the rows of one data-parallel group, sequence by sequence in
// plan order.

namespace weir::worker {

// INVALID_ARGUMENT when a plan cannot run as a whole: work for a group that does not exist, or more rows for one group
// than max_num_batched_tokens.  Looks at the plan only, so that every rank comes to the same answer.
absl::Status CheckPlan(const StepPlan& plan, int32_t num_dp_groups, int64_t max_num_batched_tokens);

class BatchInput {
 public:
  struct Sequence {
    const SequenceWork* work = nullptr;  // of the plan
    Slot* slot = nullptr;                // null when it cannot run
    std::string error;                   // why
    int32_t first_row = 0;
  };

  explicit BatchInput(int32_t block_size) : block_size_(block_size) {}

  // Applies the plan's work of `dp_rank` to the slots.  `plan` must outlive what is read from here.
  void Build(const StepPlan& plan, int32_t dp_rank, SlotTable& slots);

  kernels::BatchLayout layout() const;
  int64_t num_rows() const { return static_cast<int64_t>(token_ids_.size()); }
  // Every sequence of the group, in plan order.
  std::vector<Sequence>& sequences() { return sequences_; }
  // Those that sample, in the order of layout().sample_rows.
  const std::vector<Sequence*>& sampled() const { return sampled_; }

 private:
  void Clear();
  void AddRows(Sequence& sequence);

  int32_t block_size_;
  std::vector<int32_t> token_ids_;
  std::vector<int32_t> positions_;
  std::vector<int64_t> slot_mapping_;
  std::vector<kernels::SequenceRows> sequence_rows_;
  std::vector<int32_t> block_tables_;
  std::vector<int32_t> sample_rows_;
  std::vector<Sequence> sequences_;
  std::vector<Sequence*> sampled_;
};

}  // namespace weir::worker
