#include "worker/model/batch_input.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace weir::worker {

absl::Status CheckPlan(const StepPlan& plan, int32_t num_dp_groups, int64_t max_num_batched_tokens) {
  std::vector<int64_t> num_rows(num_dp_groups, 0);
  for (const SequenceWork& work : plan.work) {
    if (work.dp_rank < 0 || work.dp_rank >= num_dp_groups) {
      return absl::InvalidArgumentError(
          absl::StrCat("work for data-parallel group ", work.dp_rank, "; there are ", num_dp_groups));
    }
    num_rows[work.dp_rank] += std::max(work.num_tokens, 0);
  }
  for (int32_t group = 0; group < num_dp_groups; ++group) {
    if (num_rows[group] > max_num_batched_tokens) {
      return absl::InvalidArgumentError(absl::StrCat("the plan has ", num_rows[group], " rows for data-parallel group ",
                                                     group, "; max_num_batched_tokens is ", max_num_batched_tokens));
    }
  }
  return absl::OkStatus();
}

void BatchInput::Build(const StepPlan& plan, int32_t dp_rank, SlotTable& slots) {
  Clear();
  slots.BeginStep();
  sequences_.reserve(plan.work.size());  // sampled_ points into it
  for (const SequenceWork& work : plan.work) {
    if (work.dp_rank != dp_rank) continue;
    Sequence& sequence = sequences_.emplace_back(Sequence{.work = &work});
    absl::StatusOr<Slot*> slot = slots.Apply(work);
    if (slot.ok()) {
      sequence.slot = *slot;
      AddRows(sequence);
    } else {
      sequence.error = std::string(slot.status().message());
    }
  }
}

void BatchInput::AddRows(Sequence& sequence) {
  const SequenceWork& work = *sequence.work;
  const Slot& slot = *sequence.slot;
  const int32_t num_prompt_rows = std::clamp(slot.num_prompt_tokens - work.first_position, 0, work.num_tokens);
  const int32_t end = work.first_position + work.num_tokens;
  const int32_t num_blocks = (end + block_size_ - 1) / block_size_;

  sequence.first_row = static_cast<int32_t>(num_rows());
  sequence_rows_.push_back({.first_row = sequence.first_row,
                            .num_prompt_rows = num_prompt_rows,
                            .num_generated_rows = work.num_tokens - num_prompt_rows,
                            .first_position = work.first_position,
                            .block_table_begin = static_cast<int32_t>(block_tables_.size()),
                            .num_blocks = num_blocks});
  block_tables_.insert(block_tables_.end(), slot.block_table.begin(), slot.block_table.begin() + num_blocks);
  for (int32_t position = work.first_position; position < end; ++position) {
    token_ids_.push_back(slot.tokens[position]);
    positions_.push_back(position);
    slot_mapping_.push_back(int64_t{slot.block_table[position / block_size_]} * block_size_ + position % block_size_);
  }
  if (work.samples) {
    sample_rows_.push_back(static_cast<int32_t>(num_rows()) - 1);
    sampled_.push_back(&sequence);
  }
}

kernels::BatchLayout BatchInput::layout() const {
  return {.token_ids = token_ids_,
          .positions = positions_,
          .slot_mapping = slot_mapping_,
          .sequences = sequence_rows_,
          .block_tables = block_tables_,
          .sample_rows = sample_rows_};
}

void BatchInput::Clear() {
  token_ids_.clear();
  positions_.clear();
  slot_mapping_.clear();
  sequence_rows_.clear();
  block_tables_.clear();
  sample_rows_.clear();
  sequences_.clear();
  sampled_.clear();
}

}  // namespace weir::worker
