#include <algorithm>

#include "scheduler/core/state.h"

// When the request whose turn it is finds no room, others that do fit may run meanwhile: stopping there would leave the
// machine idle.  But the first one blocked keeps a claim on the group with the most room.  Once others have overtaken
// it kMaxOvertakes times, or by more service than fair share can make good, that group is shut to all others, drains,
// and must end up with room, because what can never fit was refused at arrival.

namespace weir::scheduler {
namespace {

constexpr int32_t kMaxOvertakes = 16;       // admissions while one claim stands
constexpr int32_t kMaxFailedTries = 16;     // requests looked at in one pass in vain
constexpr double kMaxLeadInCaches = 0.125;  // of what the generated tokens that fit a group's cache cost

}  // namespace

bool Scheduler::State::IsWaiting(const SequenceRef& ref) const {
  return ref.index != kNoSequence && sequences_.IsCurrent(ref) && sequences_[ref.index].phase == Phase::kWaiting;
}

bool Scheduler::State::IsClaimant(const Sequence& sequence) const {
  return HasClaim() && &sequence == &sequences_[claim_.sequence.index];
}

bool Scheduler::State::IsClosed(const Sequence& claimant) const { return claimant.num_overtakes >= kMaxOvertakes; }

bool Scheduler::State::IsShutOut(const Sequence& sequence, int32_t dp_group) const {
  if (fair_share_.counter(sequence.tenant) > pass_.least_counter_blocked + MaxLead()) return true;
  if (!HasClaim() || dp_group != claim_.dp_group) return false;
  const Sequence& claimant = sequences_[claim_.sequence.index];
  if (&sequence == &claimant || !IsClosed(claimant)) return false;
  return fair_share_.counter(sequence.tenant) >= fair_share_.counter(claimant.tenant);
}

double Scheduler::State::MaxLead() const {
  const double num_tokens = static_cast<double>(groups_.size()) * groups_[0].pool.num_total() * limits_.block_size;
  return kMaxLeadInCaches * policy_.cost_per_generated_token * num_tokens;
}

// Others that run have got so far ahead of the claimant that waiting for them to end would break its tenant's share.
// Then its blocks are held against them, and they are preempted until it has its blocks.
void Scheduler::State::MakeRoomForClaim() {
  if (!HasClaim()) return;
  const Sequence& claimant = sequences_[claim_.sequence.index];
  DpGroup& group = groups_[claim_.dp_group];
  const double max_counter = fair_share_.counter(claimant.tenant) + MaxLead();
  const int32_t needed = NumBlocksFor(claimant.num_tokens());
  SequenceIndex victim = FindVictim(group, max_counter);
  if (victim == kNoSequence) return;
  group.num_held_blocks = needed;
  group.max_counter_unheld = max_counter;
  while (victim != kNoSequence && needed > group.num_room() + group.num_draining_blocks) {
    Preempt(victim);
    victim = FindVictim(group, max_counter);
  }
}

// Blocks that a running sequence may take now.
int64_t Scheduler::State::NumWithinReach(const DpGroup& group, const Sequence& sequence) const {
  return group.pool.num_available() - NumHeldAgainst(group, sequence);
}

// Nothing is held against a pinned sequence, nor against one that runs alone: they must be able to finish.
int64_t Scheduler::State::NumHeldAgainst(const DpGroup& group, const Sequence& sequence) const {
  if (group.num_held_blocks == 0 || sequence.is_pinned || group.num_running < 2) return 0;
  return fair_share_.counter(sequence.tenant) > group.max_counter_unheld ? group.num_held_blocks : 0;
}

void Scheduler::State::TryClaimFirst() {
  if (HasClaim() && IsClosed(sequences_[claim_.sequence.index]) && HasBudget()) Serve(claim_.sequence.index);
  // It keeps others out, and may stand behind one of those in its own queue: nobody else would ever ask for it.
  if (IsWaiting(first_kept_by_pinned_) && HasBudget()) Serve(first_kept_by_pinned_.index);
}

void Scheduler::State::NoteBlocked(SequenceIndex index, const Placement& placement) {
  MarkBlocked(index, placement.why_not);
  if (placement.why_not == WaitCause::kSlots) {
    pass_.admits = false;  // nor would anybody else get one
    return;
  }
  if (++pass_.num_failed_tries >= kMaxFailedTries) pass_.admits = false;
  const double counter = fair_share_.counter(sequences_[index].tenant);
  pass_.least_counter_blocked = std::min(pass_.least_counter_blocked, counter);
  if (placement.is_kept_by_pinned) {
    NoteKeptByPinned(index);
    return;
  }
  if (HasClaim() && counter >= fair_share_.counter(sequences_[claim_.sequence.index].tenant)) return;
  claim_ = {.sequence = sequences_.Ref(index), .dp_group = 0};
  for (int32_t g = 1; g < static_cast<int32_t>(groups_.size()); ++g) {
    if (groups_[g].num_room() > groups_[claim_.dp_group].num_room()) claim_.dp_group = g;
  }
}

// It waits for other pinned sequences to end.  Those that are not pinned do not stand in its way: no claim against
// them.
void Scheduler::State::NoteKeptByPinned(SequenceIndex index) {
  if (claim_.sequence.index == index) claim_ = {};
  if (!IsWaiting(first_kept_by_pinned_) || ComesBefore(sequences_[index], sequences_[first_kept_by_pinned_.index])) {
    first_kept_by_pinned_ = sequences_.Ref(index);
  }
}

bool Scheduler::State::ComesBefore(const Sequence& a, const Sequence& b) const {
  const double counter_a = fair_share_.counter(a.tenant), counter_b = fair_share_.counter(b.tenant);
  return counter_a != counter_b ? counter_a < counter_b : a.arrival_number < b.arrival_number;
}

void Scheduler::State::NoteAdmitted(SequenceIndex index) {
  sequences_[index].num_overtakes = 0;
  if (HasClaim()) ++sequences_[claim_.sequence.index].num_overtakes;
}

// ---- why a request waits, for its wait split ----

void Scheduler::State::MarkBlocked(SequenceIndex index, WaitCause cause) {
  Sequence& sequence = sequences_[index];
  if (!sequence.is_returned) SwitchWaiting(sequence, cause);
  if (sequence.marked_in_pass == pass_.number) return;
  sequence.marked_in_pass = pass_.number;
  marked_blocked_.push_back(sequences_.Ref(index));
}

// A step that is full keeps waiting whoever would have been next.
void Scheduler::State::MarkFirstInLine() {
  const TenantId tenant = fair_share_.Least();
  if (tenant < 0 || HasBudget()) return;
  for (const PriorityClass priority : ClassOrder(queues_[tenant])) {
    const ClassQueue& queue = queues_[tenant].of(priority);
    if (!queue.prefilling.empty()) return;
    const SequenceIndex first = queue.must_be_pinned.empty() ? queue.waiting.first() : queue.must_be_pinned.first();
    if (first == kNoSequence) continue;
    if (sequences_[first].last_pass != pass_.number) MarkBlocked(first, WaitCause::kSlots);
    return;
  }
}

// Whoever was first in line before this pass and is not any more waits for others' turn again.
void Scheduler::State::ForgetOldMarks() {
  for (const SequenceRef& ref : marked_blocked_before_) {
    if (!sequences_.IsCurrent(ref)) continue;
    Sequence& sequence = sequences_[ref.index];
    if (sequence.phase != Phase::kWaiting || sequence.is_returned || sequence.marked_in_pass == pass_.number) continue;
    SwitchWaiting(sequence, WaitCause::kShare);
  }
}

}  // namespace weir::scheduler
