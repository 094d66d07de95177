#include "tools/weir/generation.h"

#include <algorithm>
#include <utility>

namespace weir::tools {

using worker::SequenceResult;
using worker::SequenceWork;
using worker::StepPlan;

Generation::Generation(std::vector<GenerationRequest> requests, GenerationLimits limits)
    : requests_(std::move(requests)), limits_(std::move(limits)), answers_(requests_.size()) {
  std::vector<int32_t> num_slots(limits_.dp, 0), next_block(limits_.dp, 0);
  for (int32_t dp_rank = 0; dp_rank < limits_.dp; ++dp_rank) {
    for (int32_t request = dp_rank; request < static_cast<int32_t>(requests_.size()); request += limits_.dp) {
      sequences_.push_back(
          {.request = request, .dp_rank = dp_rank, .slot = num_slots[dp_rank]++, .first_block = next_block[dp_rank]});
      const GenerationRequest& r = requests_[request];
      next_block[dp_rank] += NumBlocks(static_cast<int64_t>(r.prompt_ids.size()) + r.max_tokens);
    }
  }
  // A step has room for the next token of everybody.
  limits_.max_num_batched_tokens = std::max(limits_.max_num_batched_tokens, max_num_seqs());
}

bool Generation::done() const {
  return std::all_of(answers_.begin(), answers_.end(), [](const Answer& a) { return !a.finish_reason.empty(); });
}

bool Generation::all_started() const {
  return std::all_of(answers_.begin(), answers_.end(),
                     [](const Answer& a) { return !a.token_ids.empty() || !a.finish_reason.empty(); });
}

StepPlan Generation::Next() {
  StepPlan plan = {.step_id = ++step_id_, .released = std::exchange(released_, {})};
  planned_.clear();
  std::vector<int32_t> room(limits_.dp, limits_.max_num_batched_tokens);
  // Generated tokens first: a long prompt never makes an answer wait.  Prompts get what is left.
  for (Sequence& sequence : sequences_) room[sequence.dp_rank] -= sequence.num_generated > 0 && IsRunning(sequence);
  for (Sequence& sequence : sequences_) {
    if (IsRunning(sequence)) Plan(sequence, room, plan);
  }
  return plan;
}

void Generation::Plan(Sequence& sequence, std::vector<int32_t>& room, StepPlan& plan) {
  const GenerationRequest& request = RequestOf(sequence);
  const bool generates = sequence.num_generated > 0;
  const int32_t num_left = NumPrompt(sequence) - sequence.num_computed;
  const int32_t num_tokens = generates ? 1 : std::min(room[sequence.dp_rank], num_left);
  if (num_tokens == 0) return;
  if (!generates) room[sequence.dp_rank] -= num_tokens;

  SequenceWork work = {.slot = sequence.slot,
                       .dp_rank = sequence.dp_rank,
                       .has_setup = sequence.num_computed == 0,
                       .first_position = sequence.num_computed,
                       .num_tokens = num_tokens,
                       .first_new_block = sequence.num_blocks,
                       .samples = request.max_tokens > 0 && (generates || num_tokens == num_left),
                       .reports_prompt_logprobs = limits_.reports_prompts && !generates};
  if (work.has_setup) {
    work.setup = {.seed = request.seed,
                  .num_prompt_tokens = NumPrompt(sequence),
                  .token_ids = request.prompt_ids,
                  .sampling = request.sampling};
  }
  sequence.num_computed += num_tokens;
  while (sequence.num_blocks < NumBlocks(sequence.num_computed)) {
    work.new_block_ids.push_back(sequence.first_block + sequence.num_blocks++);
  }
  plan.work.push_back(std::move(work));
  planned_.push_back(&sequence);
}

void Generation::Take(const worker::StepResult& result) {
  for (size_t i = 0; i < planned_.size(); ++i) {
    Take(*planned_[i], result.sequences[i], answers_[planned_[i]->request]);
    Finish(*planned_[i], result.sequences[i]);
  }
}

void Generation::Take(const Sequence& sequence, const SequenceResult& result, Answer& answer) {
  for (const kernels::SampleOutput& output : result.prompt_logprobs) {
    // The last prompt token is followed by what is sampled; its distribution stands with the answer.
    if (static_cast<int32_t>(answer.prompt_logprobs.size()) + 1 < NumPrompt(sequence)) {
      answer.prompt_logprobs.push_back(output);
    }
  }
  if (result.has_sampled && result.sampled.token >= 0) {
    answer.token_ids.push_back(result.sampled.token);
    answer.logprobs.push_back(result.sampled);
  }
}

void Generation::Finish(Sequence& sequence, const SequenceResult& result) {
  Answer& answer = answers_[sequence.request];
  sequence.num_generated = static_cast<int32_t>(answer.token_ids.size());
  const std::vector<int32_t>& stops = limits_.stop_token_ids;
  if (!result.error.empty()) {
    answer.finish_reason = "error";
    answer.error = result.error;
  } else if (result.has_sampled && result.sampled.token < 0) {
    answer.finish_reason = "error";
    answer.error = result.sampled.is_finite ? "no token was left to choose from" : "the model's logits were not finite";
  } else if (!answer.token_ids.empty() &&
             std::find(stops.begin(), stops.end(), answer.token_ids.back()) != stops.end()) {
    answer.finish_reason = "stop";
  } else if (sequence.num_generated >= RequestOf(sequence).max_tokens && sequence.num_computed >= NumPrompt(sequence)) {
    answer.finish_reason = "length";
  }
  if (!answer.finish_reason.empty()) released_.push_back({.dp_rank = sequence.dp_rank, .slot = sequence.slot});
}

int32_t Generation::NumPrompt(const Sequence& sequence) const {
  return static_cast<int32_t>(RequestOf(sequence).prompt_ids.size());
}

int32_t Generation::NumBlocks(int64_t num_tokens) const {
  return static_cast<int32_t>((num_tokens + limits_.block_size - 1) / limits_.block_size);
}

int64_t Generation::num_blocks() const {
  std::vector<int64_t> num_blocks(limits_.dp, 1);
  for (const Sequence& sequence : sequences_) {
    const GenerationRequest& request = RequestOf(sequence);
    const int64_t end =
        sequence.first_block + NumBlocks(static_cast<int64_t>(request.prompt_ids.size()) + request.max_tokens);
    num_blocks[sequence.dp_rank] = std::max(num_blocks[sequence.dp_rank], end);
  }
  return *std::max_element(num_blocks.begin(), num_blocks.end());
}

int32_t Generation::max_num_seqs() const {
  int32_t most = 1;
  for (const Sequence& sequence : sequences_) most = std::max(most, sequence.slot + 1);
  return most;
}

}  // namespace weir::tools
