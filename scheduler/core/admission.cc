#include <algorithm>

#include "scheduler/core/forecast.h"
#include "scheduler/core/state.h"

// From waiting into a slot: which group, whether there is room, what the prefix cache has.

namespace weir::scheduler {
namespace {

// Part of a group's blocks that admission leaves to the growth of those who run already.  vLLM's watermark.
constexpr int32_t kWatermarkDivisor = 100;

}  // namespace

void Scheduler::State::TryAdmit(SequenceIndex index) {
  const Placement placement = Place(sequences_[index]);
  if (placement.dp_group < 0) {
    NoteBlocked(index, placement);
  } else if (!IsInTime(sequences_[index], placement.num_cached_blocks * limits_.block_size)) {
    End(index, FinishReason::kDeadline);
  } else {
    Admit(index, placement);
    NoteAdmitted(index);
    PlanChunk(index);
  }
}

// Of the groups that have room: the longest cached prefix, then the most room, then the first.
Scheduler::State::Placement Scheduler::State::Place(const Sequence& sequence) const {
  Placement best;
  int64_t most_room = -1;
  for (int32_t g = 0; g < static_cast<int32_t>(groups_.size()); ++g) {
    const DpGroup& group = groups_[g];
    if (group.budget <= 0 || group.free_slots.empty()) continue;
    best.why_not = WaitCause::kBlocks;
    if (!HasRoomAmongPinned(group, sequence)) continue;
    best.is_kept_by_pinned = false;
    const bool is_held_for_it = group.num_held_blocks > 0 && IsClaimant(sequence);
    if ((group.is_pressed && !is_held_for_it) || IsShutOut(sequence, g)) continue;
    const CachedPrefix cached = FindCached(group, sequence.num_prompt_tokens, sequence.block_keys);
    if (!HasRoom(group, sequence, cached)) continue;
    if (best.dp_group >= 0 && cached.num_blocks < best.num_cached_blocks) continue;
    if (best.dp_group >= 0 && cached.num_blocks == best.num_cached_blocks && group.num_room() <= most_room) continue;
    best.dp_group = g;
    best.num_cached_blocks = cached.num_blocks;
    most_room = group.num_room();
  }
  return best;
}

// Room for all tokens it has, so that a prompt once begun goes through.
bool Scheduler::State::HasRoom(const DpGroup& group, const Sequence& sequence, const CachedPrefix& cached) const {
  const int64_t needed = NumBlocksFor(sequence.num_tokens()) - cached.num_blocks + cached.num_unowned;
  const int32_t watermark = group.num_running == 0 ? 0 : group.pool.num_total() / kWatermarkDivisor;
  const bool is_held_against = !sequence.must_be_pinned && group.num_held_blocks > 0 &&
                               fair_share_.counter(sequence.tenant) > group.max_counter_unheld;
  return needed + watermark + (is_held_against ? group.num_held_blocks : 0) <= group.num_room();
}

// All that the pinned sequences of a group can ever need fits together, because none of them can be preempted for
// another (scheduler/README.md, "Why nobody waits for ever").  Who waits for others to end is not overtaken by those
// whose turn comes after its own.
bool Scheduler::State::HasRoomAmongPinned(const DpGroup& group, const Sequence& sequence) const {
  if (!sequence.must_be_pinned) return true;
  if (IsWaiting(first_kept_by_pinned_) && ComesBefore(sequences_[first_kept_by_pinned_.index], sequence)) return false;
  return group.num_pinned_blocks + NumBlocksAtMost(sequence) <= group.pool.num_total();
}

// At least one row of the prompt is always computed: somebody must sample.
Scheduler::State::CachedPrefix Scheduler::State::FindCached(const DpGroup& group, int32_t num_prompt_tokens,
                                                            std::span<const BlockKey> keys) const {
  const auto limit = std::min<size_t>(keys.size(), (num_prompt_tokens - 1) / limits_.block_size);
  CachedPrefix cached;
  for (size_t i = 0; i < limit; ++i) {
    const BlockId block = group.pool.Find(keys[i]);
    if (block == kNoBlock) break;
    ++cached.num_blocks;
    if (group.pool.num_owners(block) == 0) ++cached.num_unowned;
  }
  return cached;
}

// Its next token may still come before its deadline, if every step from here on is full of its rows.
bool Scheduler::State::IsInTime(const Sequence& sequence, int32_t first_position) const {
  if (sequence.deadline == kNever) return true;
  const int32_t rows_per_step = pass_.has_decode_rows
                                    ? std::min(limits_.max_num_batched_tokens, policy_.max_prompt_tokens_while_decoding)
                                    : limits_.max_num_batched_tokens;
  return PromptTimeUs(policy_.step_cost, sequence.num_tokens() - first_position, first_position, rows_per_step) <=
         sequence.deadline - now_;
}

void Scheduler::State::Admit(SequenceIndex index, const Placement& placement) {
  Sequence& sequence = sequences_[index];
  DpGroup& group = groups_[placement.dp_group];
  queues_[sequence.tenant].Admit(sequences_, index);
  CountWaiting(sequence, -1);

  sequence.phase = Phase::kPrefilling;
  sequence.dp_group = placement.dp_group;
  sequence.slot = group.free_slots.back();
  group.free_slots.pop_back();
  group.slots[sequence.slot].sequence = index;
  sequence.is_new_in_slot = true;
  sequence.is_pinned = sequence.must_be_pinned;
  if (sequence.is_pinned) group.num_pinned_blocks += NumBlocksAtMost(sequence);
  ++group.num_running;
  ++group.num_prefilling;

  buffers_.Reserve(SlotOf(sequence).block_table, NumBlocksAtMost(sequence));
  ShareCached(group, sequence, placement.num_cached_blocks);
  sequence.num_promised_blocks = NumBlocksFor(sequence.num_tokens()) - placement.num_cached_blocks;
  group.num_promised_blocks += sequence.num_promised_blocks;
  ResumeWaitClock(sequence);
}

void Scheduler::State::ShareCached(DpGroup& group, Sequence& sequence, int32_t num_blocks) {
  for (int32_t i = 0; i < num_blocks; ++i) {
    const BlockId block = group.pool.Find(sequence.block_keys[i]);
    group.pool.Share(block);
    buffers_.Append(SlotOf(sequence).block_table, block);
  }
  sequence.num_blocks_published = num_blocks;
  sequence.num_computed = sequence.num_planned = num_blocks * limits_.block_size;

  if (!sequence.block_keys.empty()) stats_.prefix_cache_queries += sequence.num_prompt_tokens;
  stats_.prefix_cache_hits += sequence.num_computed;
  if (sequence.num_cached_tokens < 0) sequence.num_cached_tokens = sequence.num_computed;
}

}  // namespace weir::scheduler
