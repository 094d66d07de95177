#include <algorithm>

#include "scheduler/core/forecast.h"
#include "scheduler/core/state.h"

// A request comes in: it is refused with a reason, or it joins its tenant's queue.

namespace weir::scheduler {

void Scheduler::State::On(const Arrival& arrival) {
  if (const std::optional<Refused> refused = FindRefusal(arrival)) {
    outputs_->emplace_back(*refused);
    ++stats_.requests_refused;
    return;
  }
  AddRequest(arrival);
}

std::optional<Refused> Scheduler::State::FindRefusal(const Arrival& arrival) const {
  if (!IsValid(arrival)) return Refused{.id = arrival.id, .reason = RefusalReason::kInvalid};
  if (is_draining_) return Refused{.id = arrival.id, .reason = RefusalReason::kDraining};

  const int64_t num_tokens = static_cast<int64_t>(arrival.prompt.size()) + arrival.max_tokens;
  if (num_tokens > limits_.max_model_len) {
    return Refused{
        .id = arrival.id, .reason = RefusalReason::kTooLong, .needed = num_tokens, .limit = limits_.max_model_len};
  }
  if (group_stands_ && NumBlocksFor(num_tokens) > groups_.front().pool.num_total()) {
    return Refused{.id = arrival.id,
                   .reason = RefusalReason::kNeverFits,
                   .needed = NumBlocksFor(num_tokens),
                   .limit = groups_.front().pool.num_total()};
  }
  if (arrival.deadline != kNever) {
    const TimeUs needed = PredictFirstToken(arrival);
    if (arrival.deadline <= now_ || needed > arrival.deadline - now_) {
      return Refused{.id = arrival.id,
                     .reason = RefusalReason::kDeadline,
                     .needed = needed,
                     .limit = std::max<TimeUs>(arrival.deadline - now_, 0)};
    }
  }
  return FindFullQueue(arrival);
}

bool Scheduler::State::IsValid(const Arrival& arrival) const {
  return arrival.tenant >= 0 && arrival.tenant < fair_share_.num_tenants() && !arrival.prompt.empty() &&
         static_cast<int>(arrival.priority) < kNumPriorityClasses && !by_id_.contains(arrival.id) &&
         arrival.max_tokens >= 1 && static_cast<size_t>(arrival.max_tokens) > arrival.resumed.size();
}

std::optional<Refused> Scheduler::State::FindFullQueue(const Arrival& arrival) const {
  const auto num_tokens = static_cast<int64_t>(arrival.prompt.size());
  const int32_t tenant_waiting = queues_[arrival.tenant].num_waiting();
  const int32_t tenant_limit = policy_.tenants[arrival.tenant].max_num_waiting;
  if (tenant_waiting >= tenant_limit) {
    return Refused{.id = arrival.id,
                   .reason = RefusalReason::kTenantQueueFull,
                   .retry_after_us = PredictRoom(fair_share_.num_queued()),
                   .needed = static_cast<int64_t>(tenant_waiting) + 1,
                   .limit = tenant_limit};
  }
  if (stats_.num_waiting >= limits_.max_num_waiting) {
    return Refused{.id = arrival.id,
                   .reason = RefusalReason::kQueueFull,
                   .retry_after_us = PredictRoom(1),
                   .needed = static_cast<int64_t>(stats_.num_waiting) + 1,
                   .limit = limits_.max_num_waiting};
  }
  if (stats_.num_waiting_tokens + num_tokens > limits_.max_waiting_tokens) {
    return Refused{.id = arrival.id,
                   .reason = RefusalReason::kQueueFull,
                   .retry_after_us = PredictRoom(1),
                   .needed = stats_.num_waiting_tokens + num_tokens,
                   .limit = limits_.max_waiting_tokens};
  }
  return std::nullopt;
}

// The least time to its first token: its own uncached rows, behind what its own tenant has waiting in its class and
// above.  What other tenants have waiting is not counted: it goes first only as far as it is their turn.
TimeUs Scheduler::State::PredictFirstToken(const Arrival& arrival) const {
  const auto num_prompt_tokens = static_cast<int32_t>(arrival.prompt.size());
  int32_t num_cached = 0;
  for (const DpGroup& group : groups_) {
    num_cached = std::max(num_cached, FindCached(group, num_prompt_tokens, arrival.block_keys).num_blocks);
  }
  const int64_t first_position = static_cast<int64_t>(num_cached) * limits_.block_size;
  const int64_t num_rows = num_prompt_tokens + static_cast<int64_t>(arrival.resumed.size()) - first_position;
  return FirstTokenTimeUs(policy_.step_cost, num_rows, first_position,
                          queues_[arrival.tenant].NumRowsAhead(arrival.priority), limits_.max_num_batched_tokens,
                          static_cast<int32_t>(groups_.size()));
}

// When a waiting request of ordinary length is likely to have left the queue: the time to compute one, once for each
// tenant whose turn comes before.
TimeUs Scheduler::State::PredictRoom(int64_t num_turns) const {
  const int64_t rows = stats_.num_waiting_tokens / std::max(stats_.num_waiting, 1);
  return std::max<TimeUs>(
      1, std::max<int64_t>(num_turns, 1) *
             PromptTimeUs(policy_.step_cost, std::max<int64_t>(rows, 1), 0, limits_.max_num_batched_tokens));
}

void Scheduler::State::AddRequest(const Arrival& arrival) {
  const SequenceIndex index = sequences_.Add();
  Sequence& sequence = sequences_[index];
  sequence.phase = Phase::kWaiting;
  sequence.id = arrival.id;
  sequence.tenant = arrival.tenant;
  sequence.priority = arrival.priority;
  sequence.deadline = arrival.deadline;
  sequence.arrival_number = ++num_arrivals_;
  sequence.num_prompt_tokens = static_cast<int32_t>(arrival.prompt.size());
  sequence.num_resumed_tokens = static_cast<int32_t>(arrival.resumed.size());
  sequence.must_be_pinned = policy_.max_preemptions == 0;
  sequence.max_tokens = arrival.max_tokens;
  sequence.min_tokens = arrival.min_tokens;
  sequence.stop_tokens = arrival.stop_tokens;
  for (const TokenId token : arrival.stop_tokens) sequence.stop_token_bits |= StopTokenBit(token);
  sequence.block_keys = arrival.block_keys;
  sequence.num_blocks_to_publish = static_cast<int32_t>(
      std::min<size_t>(arrival.block_keys.size(), sequence.num_prompt_tokens / limits_.block_size));
  // Room for the output too, as long as that is in proportion: tokens then join without growing in the middle of a
  // step.
  const int64_t num_known = sequence.num_prompt_tokens + static_cast<int64_t>(sequence.num_resumed_tokens);
  buffers_.Reserve(sequence.tokens, num_known + std::min<int64_t>(arrival.max_tokens, num_known + 1024));
  buffers_.Append(sequence.tokens, arrival.prompt);
  buffers_.Append(sequence.tokens, arrival.resumed);
  sequence.wait.Start(now_, downtime_);

  by_id_.emplace(arrival.id, index);
  deadlines_.Add(index, arrival.deadline);
  queues_[arrival.tenant].AddWaiting(sequences_, index);
  ++stats_.requests_admitted;
  CountWaiting(sequence, 1);
  SyncFairShare(arrival.tenant);
}

}  // namespace weir::scheduler
