#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/sampling.h"
#include "worker/step_plan.h"

// A batch of prompts turned into plans, step after step, until each has its answer.  The smallest of planners: every
// sequence runs from the start, generated tokens first, prompts in chunks with the room that is left; blocks are handed
// out in order and nobody is ever preempted.  Knows no rank and no clock.

namespace weir::tools {

struct GenerationRequest {
  std::vector<int32_t> prompt_ids;  // at least one
  int32_t max_tokens = 0;           // to generate
  uint64_t seed = 0;
  kernels::SamplingParams sampling;
};

struct GenerationLimits {
  int32_t dp = 1;  // sequences go to the data-parallel groups in turn
  int32_t block_size = 64;
  int32_t max_num_batched_tokens = 2048;  // of each group
  bool reports_prompts = false;           // distributions after each prompt token
  std::vector<int32_t> stop_token_ids;    // end a sequence; the token itself is the answer's last
};

struct Answer {
  std::vector<int32_t> token_ids;
  std::vector<kernels::SampleOutput> prompt_logprobs;  // with reports_prompts: prompt tokens - 1 entries
  std::vector<kernels::SampleOutput> logprobs;         // one for each of token_ids
  std::string finish_reason;                           // "length", "stop" or "error"; empty while it runs
  std::string error;
};

class Generation {
 public:
  Generation(std::vector<GenerationRequest> requests, GenerationLimits limits);

  bool done() const;
  // The next step.  Requires: not done, and the result of the step before was taken.
  worker::StepPlan Next();
  void Take(const worker::StepResult& result);

  const std::vector<Answer>& answers() const { return answers_; }  // in the order of the requests
  bool all_started() const;                                        // each has its first token, or has failed

  // What the ranks must have.
  int64_t num_blocks() const;  // of a group's cache
  int32_t max_num_seqs() const;

 private:
  struct Sequence {
    int32_t request = 0;
    int32_t dp_rank = 0;
    worker::SlotId slot = 0;
    int32_t first_block = 0;  // its blocks are consecutive
    int32_t num_blocks = 0;   // handed out so far
    int32_t num_computed = 0;
    int32_t num_generated = 0;
  };
  bool IsRunning(const Sequence& sequence) const { return answers_[sequence.request].finish_reason.empty(); }
  const GenerationRequest& RequestOf(const Sequence& sequence) const { return requests_[sequence.request]; }
  int32_t NumPrompt(const Sequence& sequence) const;
  int32_t NumBlocks(int64_t num_tokens) const;
  void Plan(Sequence& sequence, std::vector<int32_t>& room, worker::StepPlan& plan);
  void Take(const Sequence& sequence, const worker::SequenceResult& result, Answer& answer);
  void Finish(Sequence& sequence, const worker::SequenceResult& result);

  std::vector<GenerationRequest> requests_;
  GenerationLimits limits_;
  std::vector<Answer> answers_;
  std::vector<Sequence> sequences_;  // by group, then as requested
  std::vector<Sequence*> planned_;   // of the step that runs, in plan order
  std::vector<worker::StepPlan::ReleasedSlot> released_;
  uint64_t step_id_ = 0;
};

}  // namespace weir::tools
