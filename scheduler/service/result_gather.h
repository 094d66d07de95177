#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/core/events.h"
#include "scheduler/core/step_plan.h"
#include "scheduler/service/messages.h"
#include "scheduler/service/step_cost_estimate.h"

// The steps that are at the ranks, and what each rank has answered.  A step is complete when every rank has answered,
// all of them having read the same plan; its tokens come from the first rank of each data-parallel group.  Ranks are
// outside: what does not fit the plan is reported in words and never handed on.

namespace weir::scheduler {

struct StepRequest {
  RequestId id = 0;
  TokenLogprobs logprobs;
  std::string error;  // why the rank could not run its rows
  bool samples = false;
};

// One rank's share of a step.
struct RankShare {
  int64_t total_us = 0;
  int64_t communication_us = 0;
  int64_t sampling_us = 0;
  uint64_t num_expert_rows = 0;
};

struct CompletedStep {
  StepCompleted result;
  std::vector<StepRequest> requests;  // that sampled a token or could not run, in plan order
  std::vector<RankShare> ranks;       // by rank
  int64_t num_rows = 0;
  StepSize size;
  TimeUs took_us = 0;  // since the step was sent, or the one before it completed
};

class ResultGather {
 public:
  ResultGather(int32_t num_ranks, int32_t tp, int32_t vocab_size = std::numeric_limits<int32_t>::max())
      : num_ranks_(num_ranks), tp_(tp), vocab_size_(vocab_size) {}

  void Begin(TimeUs now, const StepPlan& plan);
  // What is wrong with it, in words; empty if nothing is.
  std::string Take(int32_t rank, RankResult result);
  // Steps complete in order.  False: the oldest is not complete.
  bool PopCompleted(TimeUs now, CompletedStep& step);

  bool empty() const { return steps_.empty(); }
  // Of the oldest step.  Requires: !empty().
  TimeUs waiting_since() const { return waiting_since_; }
  int64_t num_rows() const { return steps_.front().num_rows; }
  StepId step() const { return steps_.front().step; }
  // Ranks whose answer to the oldest step is missing.
  std::vector<int32_t> Missing() const;

 private:
  struct Work {
    RequestId id = 0;
    int32_t dp_group = 0;
    SlotId slot = 0;
    bool samples = false;
  };
  struct Step {
    StepId step = 0;
    Epoch epoch = 0;
    int64_t num_rows = 0;
    StepSize size;
    std::vector<Work> work;
    std::vector<bool> has_answered;  // by rank
    std::vector<RankShare> ranks;
    int32_t num_answers = 0;
    uint64_t plan_hash = 0;                               // of the first answer
    std::vector<std::vector<SequenceOutcome>> sequences;  // by data-parallel group
  };
  std::string FindMisfit(const Step& step, int32_t rank, const RankResult& result) const;
  void Complete(Step& step, CompletedStep& completed) const;

  const int32_t num_ranks_;
  const int32_t tp_;
  const int32_t vocab_size_;
  std::deque<Step> steps_;
  TimeUs waiting_since_ = 0;
};

}  // namespace weir::scheduler
