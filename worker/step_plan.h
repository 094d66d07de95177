#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/sampling.h"

// What a rank is told to do in one step, and what it answers.  Integers only: no text, no tenant, no policy.  All ranks
// of a group receive the same plan; a rank runs the sequences of its own data-parallel group and takes part in every
// exchange.

namespace weir::worker {

// A sequence's place in the worker's tables, given by the scheduler, 0 <= slot < max_num_seqs, one per live sequence
// and data-parallel group.
using SlotId = int32_t;

// Everything about a sequence that does not change from step to step.  Sent with its first work in an epoch, and again
// after a preemption (the slot may differ).
struct SequenceSetup {
  uint64_t request_id = 0;  // with seed: names the noise
  uint64_t seed = 0;
  int32_t num_prompt_tokens = 0;  // positions below this are prompt rows (MHA form), the others generated rows
  std::vector<int32_t>
      token_ids;  // prompt, then what was generated before (recomputation, resume); penalties count them
  kernels::SamplingParams sampling;
};

// One sequence's share of a step: token positions [first_position, first_position + num_tokens).
struct SequenceWork {
  SlotId slot = 0;
  int32_t dp_rank = 0;  // the data-parallel group that holds the sequence
  bool has_setup = false;
  SequenceSetup setup;  // when has_setup

  int32_t first_position = 0;
  int32_t num_tokens = 0;
  // Tokens of the positions above.  Empty: taken from setup.token_ids, or, for a single position after them, the token
  // that this slot sampled in the step before (the plan was made before it was known).
  std::vector<int32_t> token_ids;

  // The sequence's block table from entry first_new_block on; earlier entries are as they were.
  int32_t first_new_block = 0;
  std::vector<int32_t> new_block_ids;

  // Choose the token after the last position.
  bool samples = false;
  // Report the distribution after each of this work's positions: the log-probability of the token that follows (where
  // it is known) and the num_top_logprobs most likely.  For `weir generate --echo` and prompt log-probabilities.
  bool reports_prompt_logprobs = false;
};

struct StepPlan {
  uint64_t step_id = 0;
  uint64_t epoch = 0;
  std::vector<SequenceWork> work;  // in dp_rank order, then as planned
  struct ReleasedSlot {
    int32_t dp_rank = 0;
    SlotId slot = 0;
  };
  std::vector<ReleasedSlot> released;  // free to forget, before `work`
};

struct SequenceResult {
  SlotId slot = 0;
  int32_t dp_rank = 0;
  // Set when the plan said samples.  token -1 with is_finite false: the row was not finite; the sequence must be
  // aborted.
  kernels::SampleOutput sampled;
  bool has_sampled = false;
  std::vector<kernels::SampleOutput> prompt_logprobs;  // one per position, when asked for
  // Why this sequence could not run, empty if it could.  The others of the step are not touched.
  std::string error;
};

struct StepTimings {
  int64_t total_us = 0;
  int64_t communication_us = 0;  // waiting for other ranks and moving bytes
  int64_t sampling_us = 0;
};

struct StepResult {
  uint64_t step_id = 0;
  uint64_t epoch = 0;
  uint64_t plan_hash = 0;                 // PlanHash of the plan as this rank saw it
  std::vector<SequenceResult> sequences;  // of this rank's data-parallel group, in plan order
  std::vector<int64_t> expert_loads;      // rows computed, per (MoE layer, expert held here), layer-major
  StepTimings timings;
};

// A hash of every field of a plan: ranks compare it to find a diverged plan before it does harm.  Stable within a
// build.
uint64_t PlanHash(const StepPlan& plan);

}  // namespace weir::worker
