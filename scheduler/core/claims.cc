#include "scheduler/core/state.h"

// When the request whose turn it is finds no room, others that do fit may run meanwhile: stopping there would leave the
// machine idle.  But the first one blocked keeps a claim on the group with the most room.  Once others have overtaken
// it kMaxOvertakes times, or by more service than fair share can make good, that group is shut to all others, drains,
// and must end up with room, because what can never fit was refused at arrival.

namespace weir::scheduler {
namespace {

constexpr int32_t kMaxOvertakes = 16;      // admissions while one claim stands
constexpr int32_t kMaxFailedTries = 16;    // requests looked at in one pass in vain
constexpr double kMaxLeadInCaches = 0.25;  // of what the generated tokens that fit a group's cache cost

}  // namespace

bool Scheduler::State::HasClaim() const {
  return claim_.sequence.index != kNoSequence && sequences_.IsCurrent(claim_.sequence) &&
         sequences_[claim_.sequence.index].phase == Phase::kWaiting;
}

bool Scheduler::State::IsClosed(const Claim& claim) const { return claim.num_overtakes >= kMaxOvertakes; }

bool Scheduler::State::IsShutOut(const Sequence& sequence, int32_t dp_group) const {
  if (dp_group != claim_.dp_group || !HasClaim()) return false;
  const Sequence& claimant = sequences_[claim_.sequence.index];
  if (&sequence == &claimant) return false;
  const double max_lead =
      kMaxLeadInCaches * policy_.cost_per_generated_token * limits_.block_size * groups_[dp_group].pool.num_total();
  return IsClosed(claim_) || fair_share_.counter(sequence.tenant) > fair_share_.counter(claimant.tenant) + max_lead;
}

void Scheduler::State::TryClaimFirst() {
  if (HasClaim() && IsClosed(claim_) && HasBudget()) Serve(claim_.sequence.index);
}

void Scheduler::State::NoteBlocked(SequenceIndex index, WaitCause cause) {
  MarkBlocked(index, cause);
  if (cause == WaitCause::kSlots) {
    pass_.admits = false;  // nor would anybody else get one
    return;
  }
  if (++pass_.num_failed_tries >= kMaxFailedTries) pass_.admits = false;
  if (HasClaim()) return;
  claim_ = {.sequence = sequences_.Ref(index), .dp_group = 0, .num_overtakes = 0};
  for (int32_t g = 1; g < static_cast<int32_t>(groups_.size()); ++g) {
    if (groups_[g].num_room() > groups_[claim_.dp_group].num_room()) claim_.dp_group = g;
  }
}

void Scheduler::State::NoteAdmitted(SequenceIndex index) {
  if (claim_.sequence.index == index && sequences_.IsCurrent(claim_.sequence)) claim_ = {};
  if (HasClaim()) ++claim_.num_overtakes;
}

// ---- why a request waits, for its wait split ----

void Scheduler::State::MarkBlocked(SequenceIndex index, WaitCause cause) {
  Sequence& sequence = sequences_[index];
  if (!sequence.is_returned) sequence.wait.SwitchTo(cause, now_, downtime_);
  if (sequence.marked_in_pass == pass_.number) return;
  sequence.marked_in_pass = pass_.number;
  marked_blocked_.push_back(sequences_.Ref(index));
}

// A step that is full keeps waiting whoever would have been next.
void Scheduler::State::MarkFirstInLine() {
  const TenantId tenant = fair_share_.Least();
  if (tenant < 0 || HasBudget()) return;
  for (const PriorityClass priority : queues_[tenant].ClassOrder()) {
    const ClassQueue& queue = queues_[tenant].of(priority);
    if (!queue.prefilling.empty()) return;
    const SequenceIndex first = queue.waiting.first();
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
    sequence.wait.SwitchTo(WaitCause::kShare, now_, downtime_);
  }
}

}  // namespace weir::scheduler
