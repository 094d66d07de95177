#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "weir/worker/v1/worker.pb.h"
#include "worker/step_plan.h"

// Plans and results <-> their messages.
//
// Decoding takes bytes from outside: it checks what a struct cannot hold (numbers beyond their type) and what would
// cost more memory than a step may, never what Rank::Run reports for one sequence only (unknown slots and blocks,
// positions, tokens, sampling parameters).  INVALID_ARGUMENT names the field and the work it belongs to.

namespace weir::worker {

struct PlanLimits {
  int64_t max_work = 0;          // sequences of one step, all data-parallel groups together
  int64_t max_released = 0;      // slots released in one step
  int64_t max_token_ids = 0;     // of one sequence: what a step may bring, or the longest sequence
  int64_t max_block_ids = 0;     // of one sequence
  int64_t max_logit_biases = 0;  // of one sequence
};
// Limits for a group of dp data-parallel groups with these slots, positions and blocks.
PlanLimits LimitsFor(int32_t dp, int64_t max_num_seqs, int64_t max_model_len, int64_t num_blocks);

void EncodePlan(const StepPlan& plan, v1::StepPlan& message);
absl::StatusOr<StepPlan> DecodePlan(const v1::StepPlan& message, const PlanLimits& limits);

void EncodeResult(const StepResult& result, v1::StepResult& message);
// max_sequences and max_prompt_rows: what the plan can have asked for.
absl::StatusOr<StepResult> DecodeResult(const v1::StepResult& message, int64_t max_sequences, int64_t max_prompt_rows);

}  // namespace weir::worker
