#include "scheduler/service/result_gather.h"

#include <algorithm>

namespace weir::scheduler {
namespace {

int64_t NumRows(const StepSize& size) { return size.num_prompt_rows + size.num_generated_rows; }

// Work comes group by group.
StepSize SizeOf(const StepPlan& plan) {
  StepSize busiest, group;
  int32_t dp_group = 0;
  for (const PlannedWork& work : plan.work) {
    if (work.dp_group != dp_group) group = {};
    dp_group = work.dp_group;
    group.num_prompt_rows += work.num_prompt_rows;
    group.num_generated_rows += work.num_tokens - work.num_prompt_rows;
    group.num_context += work.num_tokens * (work.first_position + (work.num_tokens - 1) / 2.0);
    if (NumRows(group) > NumRows(busiest)) busiest = group;
  }
  return busiest;
}

}  // namespace

void ResultGather::Begin(TimeUs now, const StepPlan& plan) {
  if (steps_.empty()) waiting_since_ = now;
  Step step{.step = plan.step,
            .epoch = plan.epoch,
            .num_rows = plan.num_prompt_rows + plan.num_generated_rows,
            .size = SizeOf(plan)};
  step.work.reserve(plan.work.size());
  for (const PlannedWork& work : plan.work) {
    step.work.push_back({.id = work.id, .dp_group = work.dp_group, .slot = work.slot, .samples = work.samples});
  }
  step.has_answered.resize(num_ranks_);
  step.ranks.resize(num_ranks_);
  step.sequences.resize(num_ranks_ / tp_);
  steps_.push_back(std::move(step));
}

std::string ResultGather::Take(int32_t rank, RankResult result) {
  const auto step = std::find_if(steps_.begin(), steps_.end(), [&](const Step& s) { return s.step == result.step; });
  const std::string who = "rank " + std::to_string(rank) + ": ";
  if (step == steps_.end())
    return who + "a result of step " + std::to_string(result.step) + ", which it has not to run";
  if (step->has_answered[rank]) return who + "a second result of step " + std::to_string(result.step);
  if (step->num_answers > 0 && step->plan_hash != result.plan_hash) {
    return who + "read another plan for step " + std::to_string(result.step) + " than the other ranks";
  }
  if (std::string misfit = FindMisfit(*step, rank, result); !misfit.empty()) {
    return who + "step " + std::to_string(result.step) + ": " + misfit;
  }
  step->plan_hash = result.plan_hash;
  step->has_answered[rank] = true;
  ++step->num_answers;
  step->ranks[rank] = {.total_us = result.total_us,
                       .communication_us = result.communication_us,
                       .sampling_us = result.sampling_us,
                       .num_expert_rows = result.num_expert_rows};
  if (rank % tp_ == 0) step->sequences[rank / tp_] = std::move(result.sequences);
  return "";
}

// Answers are those of this group's work, in plan order; work that samples nothing may be left out.
std::string ResultGather::FindMisfit(const Step& step, int32_t rank, const RankResult& result) const {
  if (rank % tp_ != 0) return "";
  auto sequence = result.sequences.begin();
  for (const Work& work : step.work) {
    if (work.dp_group != rank / tp_) continue;
    const bool is_there =
        sequence != result.sequences.end() && sequence->slot == work.slot && sequence->dp_group == work.dp_group;
    if (!is_there && work.samples) return "no answer for slot " + std::to_string(work.slot);
    if (!is_there) continue;
    const bool has_token = sequence->has_sampled && sequence->token >= 0;
    if (has_token && !work.samples) return "a token for slot " + std::to_string(work.slot) + ", which samples none";
    if (has_token && sequence->token >= vocab_size_)
      return "token " + std::to_string(sequence->token) + " does not exist";
    const bool has_reason = !sequence->error.empty() || (sequence->has_sampled && !sequence->is_finite);
    if (work.samples && !has_token && !has_reason) {
      return "neither a token nor a reason for slot " + std::to_string(work.slot);
    }
    ++sequence;
  }
  if (sequence != result.sequences.end()) {
    return "an answer for slot " + std::to_string(sequence->slot) + ", out of plan order or not planned";
  }
  return "";
}

bool ResultGather::PopCompleted(TimeUs now, CompletedStep& completed) {
  if (steps_.empty() || steps_.front().num_answers < num_ranks_) return false;
  Complete(steps_.front(), completed);
  completed.took_us = now - waiting_since_;
  steps_.pop_front();
  waiting_since_ = now;
  return true;
}

void ResultGather::Complete(Step& step, CompletedStep& completed) const {
  completed = {.result = {.epoch = step.epoch, .step = step.step},
               .ranks = std::move(step.ranks),
               .num_rows = step.num_rows,
               .size = step.size};
  std::vector<size_t> next(step.sequences.size());
  for (const Work& work : step.work) {
    std::vector<SequenceOutcome>& sequences = step.sequences[work.dp_group];
    size_t& i = next[work.dp_group];
    if (i >= sequences.size() || sequences[i].slot != work.slot) continue;
    SequenceOutcome& outcome = sequences[i++];
    if (work.samples) {
      completed.result.sampled.push_back({.dp_group = work.dp_group,
                                          .slot = work.slot,
                                          .token = outcome.token,
                                          .is_finite = outcome.is_finite,
                                          .has_failed = !outcome.error.empty()});
    }
    if (work.samples || !outcome.error.empty()) {
      completed.requests.push_back({.id = work.id,
                                    .logprobs = std::move(outcome.logprobs),
                                    .error = std::move(outcome.error),
                                    .samples = work.samples});
    }
  }
}

std::vector<int32_t> ResultGather::Missing() const {
  std::vector<int32_t> missing;
  for (int32_t rank = 0; !steps_.empty() && rank < num_ranks_; ++rank) {
    if (!steps_.front().has_answered[rank]) missing.push_back(rank);
  }
  return missing;
}

}  // namespace weir::scheduler
