#include <algorithm>

#include "scheduler/core/check.h"
#include "scheduler/core/state.h"

// What the workers have computed.  Steps complete in the order they were planned: a result that overtakes an earlier
// one is held until that has come.

namespace weir::scheduler {
namespace {

constexpr size_t kAhead = 8;  // as in decode_rows.cc

}  // namespace

void Scheduler::State::On(const StepCompleted& completed) {
  if (!group_stands_ || completed.epoch != epoch_) return;
  StepInFlight* step = steps_.Find(completed.step);
  if (step == nullptr) return;
  step->is_completed = true;
  step->sampled.assign(completed.sampled.begin(), completed.sampled.end());
  while (!steps_.empty() && steps_.at(0).is_completed) {
    CompleteStep(steps_.at(0));
    steps_.PopFront();
  }
}

void Scheduler::State::CompleteStep(const StepInFlight& step) {
  last_completed_step_ = step.step;
  size_t num_sampled = 0;
  for (size_t i = 0; i < step.work.size(); ++i) {
    PrefetchWork(step, i);
    const WorkInFlight& work = step.work[i];
    const SampledToken* sampled = nullptr;
    if (work.samples) {
      WEIR_CHECK(num_sampled < step.sampled.size(), "a result has one token for each work that samples");
      sampled = &step.sampled[num_sampled++];
      WEIR_CHECK(sampled->dp_group == work.dp_group && sampled->slot == work.slot, "tokens come in plan order");
    }
    CompleteWork(work, sampled);
    if (sequences_.IsCurrent(work.sequence)) continue;
    const Slot& slot = groups_[work.dp_group].slots[work.slot];
    if (slot.is_draining && slot.last_step == step.step) ReleaseSlot(work.dp_group, work.slot);
  }
  WEIR_CHECK(num_sampled == step.sampled.size(), "a result has one token for each work that samples");
}

// The sequences first, and a few turns later, by way of them, the places of their new tokens.
void Scheduler::State::PrefetchWork(const StepInFlight& step, size_t i) const {
  if (i + 2 * kAhead < step.work.size()) sequences_.Prefetch(step.work[i + 2 * kAhead].sequence.index);
  if (i + kAhead < step.work.size()) sequences_[step.work[i + kAhead].sequence.index].tokens.PrefetchEnd();
}

void Scheduler::State::CompleteWork(const WorkInFlight& work, const SampledToken* sampled) {
  CountRows(work);
  if (!sequences_.IsCurrent(work.sequence)) return;  // ended, or preempted and to be computed again
  const SequenceIndex index = work.sequence.index;
  Sequence& sequence = sequences_[index];
  sequence.num_computed += work.num_rows;
  if (sampled != nullptr) {
    --sequence.num_samples_in_flight;
    if (sampled->has_failed || !sampled->is_finite) {
      UnpublishBlocks(sequence);
      End(index, sampled->has_failed ? FinishReason::kFailed : FinishReason::kNotFinite);
      return;
    }
  }
  PublishBlocks(sequence);
  if (sampled != nullptr) {
    TakeToken(index, sampled->token);
  } else {
    ResumeWaitClock(sequence);
  }
}

void Scheduler::State::CountRows(const WorkInFlight& work) {
  stats_.prompt_tokens_computed += work.num_prompt_rows;
  stats_.generated_tokens_computed += work.num_rows - work.num_prompt_rows;
  stats_.recomputed_tokens += work.num_recomputed_rows;
  if (sequences_.IsAlive(work.sequence)) {
    sequences_[work.sequence.index].num_rows_run += work.num_rows;
  } else {
    stats_.wasted_rows += work.num_rows;
  }
}

// Full blocks of prompt rows only: a generated row is computed in another form and is never shared as a prompt.
void Scheduler::State::PublishBlocks(Sequence& sequence) {
  if (sequence.num_blocks_published == sequence.num_blocks_to_publish) return;
  const int32_t num_full = std::min(sequence.num_computed / limits_.block_size, sequence.num_blocks_to_publish);
  const IntBuffer& table = SlotOf(sequence).block_table;
  BlockPool& pool = groups_[sequence.dp_group].pool;
  for (int32_t& i = sequence.num_blocks_published; i < num_full; ++i) pool.Publish(table[i], sequence.block_keys[i]);
}

// The numbers broke somewhere in these blocks.  Which one is to blame is unknown, so none may be found again, neither
// those it computed nor those it found.
void Scheduler::State::UnpublishBlocks(const Sequence& sequence) {
  DpGroup& group = groups_[sequence.dp_group];
  for (const BlockId block : group.slots[sequence.slot].block_table.view()) group.pool.Unpublish(block);
}

void Scheduler::State::TakeToken(SequenceIndex index, TokenId token) {
  Sequence& sequence = sequences_[index];
  buffers_.Append(sequence.tokens, token);
  outputs_->emplace_back(Token{.id = sequence.id, .index = sequence.num_output_tokens() - 1, .token = token});
  ++stats_.tokens_emitted;
  ResumeWaitClock(sequence);
  if (IsStop(sequence, token)) {
    End(index, FinishReason::kStop);
  } else if (sequence.num_output_tokens() >= sequence.max_tokens) {
    End(index, FinishReason::kLength);
  }
}

bool Scheduler::State::IsStop(const Sequence& sequence, TokenId token) const {
  if ((sequence.stop_token_bits & StopTokenBit(token)) == 0) return false;
  if (sequence.num_output_tokens() < sequence.min_tokens) return false;
  return std::find(sequence.stop_tokens.begin(), sequence.stop_tokens.end(), token) != sequence.stop_tokens.end();
}

}  // namespace weir::scheduler
