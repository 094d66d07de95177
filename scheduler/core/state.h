#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "scheduler/core/buffer_pool.h"
#include "scheduler/core/deadlines.h"
#include "scheduler/core/dp_group.h"
#include "scheduler/core/fair_share.h"
#include "scheduler/core/scheduler.h"
#include "scheduler/core/sequence.h"
#include "scheduler/core/steps_in_flight.h"
#include "scheduler/core/tenant_queue.h"
#include "scheduler/core/wait_clock.h"

// What the scheduler knows, and the steps its decisions are made of.  Each group of functions has a file of its own,
// named beside it.

namespace weir::scheduler {

class Scheduler::State {
 public:
  State(const Limits& limits, const Policy& policy);

  void Apply(TimeUs now, const Event& event, std::vector<Output>& outputs);
  bool Plan(TimeUs now, StepPlan& plan, std::vector<Output>& outputs);

  TimeUs wake_time() const { return deadlines_.earliest(); }
  const Stats& stats() const { return stats_; }

  // books.cc
  std::span<const TokenId> tokens(RequestId id) const;
  double service(TenantId tenant) const;
  double virtual_counter(TenantId tenant) const;
  std::vector<SequenceView> Sequences() const;
  std::string CheckBooks() const;

 private:
  // Where a waiting request may run, or why nowhere.
  struct Placement {
    int32_t dp_group = -1;
    int32_t num_cached_blocks = 0;
    WaitCause why_not = WaitCause::kSlots;
    bool is_kept_by_pinned = true;  // no group has room for one more pinned sequence
  };
  // The cached blocks at the front of a prompt.
  struct CachedPrefix {
    int32_t num_blocks = 0;
    int32_t num_unowned = 0;  // of them, nobody's yet: taking them takes room
  };
  // The first request that found no room keeps a claim.  Others may overtake it, but not without end.
  struct Claim {
    SequenceRef sequence;
    int32_t dp_group = -1;
  };
  // What one planning pass remembers.
  struct Pass {
    uint64_t number = 0;
    StepPlan* plan = nullptr;
    bool has_decode_rows = false;
    bool admits = true;  // waiting requests may still be tried
    int32_t num_failed_tries = 0;
    double least_counter_blocked = std::numeric_limits<double>::infinity();  // of those that found no room
    int32_t num_stopped = 0;  // running sequences that had to leave their slots
  };

  // ---- scheduler.cc: the two central functions ----
  void Begin(TimeUs now, std::vector<Output>& outputs);
  void FinishExpired();
  bool CanPlan() const { return group_stands_ && !steps_.full(); }
  bool PlanStep(StepPlan& plan);
  void RefreshGauges();

  // ---- events ----
  void On(const Arrival& arrival);          // arrivals.cc
  void On(const Cancel& cancel);            // ending.cc
  void On(const StepCompleted& completed);  // results.cc
  void On(const WorkerLost& lost);          // workers.cc
  void On(const GroupFormed& formed);       // workers.cc
  void On(const Tick&) {}                   // deadlines have been looked at already
  void On(const PolicyChanged& changed);    // scheduler.cc
  void On(const DrainStarted&) { is_draining_ = true; }

  // ---- arrivals.cc ----
  std::optional<Refused> FindRefusal(const Arrival& arrival) const;
  bool IsValid(const Arrival& arrival) const;
  std::optional<Refused> FindFullQueue(const Arrival& arrival) const;
  TimeUs PredictFirstToken(const Arrival& arrival) const;
  TimeUs PredictRoom(int64_t num_turns) const;
  void AddRequest(const Arrival& arrival);

  // ---- decode_rows.cc: a row for each decoding sequence, before all else ----
  void PlanDecodeRows();
  bool IsShortOfBlocks(const DpGroup& group) const;
  void GrowDecodingTables(DpGroup& group);
  void PlanDecodeRows(DpGroup& group);
  bool IsDue(const Sequence& sequence) const;
  void SetBudgets();

  // ---- prompt_rows.cc: the rest of the step, dealt by fair share ----
  void PlanPromptRows();
  bool HasBudget() const;
  bool HasPrefilling() const;
  std::array<PriorityClass, kNumPriorityClasses> ClassOrder(const TenantQueue& queue) const;
  SequenceIndex NextCandidate(const TenantQueue& queue) const;
  SequenceIndex FirstPrefilling(const ClassQueue& queue) const;
  SequenceIndex FirstWaiting(const ClassQueue& queue) const;
  void Serve(SequenceIndex index);
  void PlanChunk(SequenceIndex index);
  void StartDecoding(SequenceIndex index);

  // ---- admission.cc: from waiting into a slot ----
  void TryAdmit(SequenceIndex index);
  Placement Place(const Sequence& sequence) const;
  bool HasRoomAmongPinned(const DpGroup& group, const Sequence& sequence) const;
  bool HasRoom(const DpGroup& group, const Sequence& sequence, const CachedPrefix& cached) const;
  CachedPrefix FindCached(const DpGroup& group, int32_t num_prompt_tokens, std::span<const BlockKey> keys) const;
  bool IsInTime(const Sequence& sequence, int32_t first_position) const;
  void Admit(SequenceIndex index, const Placement& placement);
  void ShareCached(DpGroup& group, Sequence& sequence, int32_t num_blocks);

  // ---- claims.cc: who is blocked, and who may overtake it ----
  bool IsWaiting(const SequenceRef& ref) const;
  bool HasClaim() const { return IsWaiting(claim_.sequence); }
  bool IsClaimant(const Sequence& sequence) const;
  bool IsClosed(const Sequence& claimant) const;
  double MaxLead() const;
  bool IsShutOut(const Sequence& sequence, int32_t dp_group) const;
  void TryClaimFirst();
  void NoteBlocked(SequenceIndex index, const Placement& placement);
  void NoteKeptByPinned(SequenceIndex index);
  bool ComesBefore(const Sequence& a, const Sequence& b) const;
  void NoteAdmitted(SequenceIndex index);
  void MarkBlocked(SequenceIndex index, WaitCause cause);
  void MarkFirstInLine();
  void ForgetOldMarks();

  // ---- preemption.cc ----
  void MakeRoomForClaim();
  int64_t NumWithinReach(const DpGroup& group, const Sequence& sequence) const;
  int64_t NumHeldAgainst(const DpGroup& group, const Sequence& sequence) const;
  bool MakeRoom(DpGroup& group, SequenceIndex for_whom);
  bool IsEnding(const Sequence& sequence) const;
  bool HasEnding(const DpGroup& group) const;
  SequenceIndex FindVictim(const DpGroup& group, double min_counter) const;
  void Preempt(SequenceIndex index);

  // ---- planning.cc: rows, blocks and charges ----
  void BeginPass(StepPlan& plan);
  void ReservePlan(StepPlan& plan) const;
  int32_t TakeBlocks(DpGroup& group, Sequence& sequence, int32_t num_rows);
  void AddWork(DpGroup& group, SequenceIndex index, int32_t num_rows);
  void AddBlocks(Sequence& sequence, PlannedWork& work);
  void RememberWork(DpGroup& group, SequenceIndex index, const PlannedWork& work);
  bool HasWork() const;
  void SendPlan();
  double CostOf(const Sequence& sequence, int32_t first_position, int32_t num_rows) const;
  void Charge(TenantId tenant, PriorityClass priority, double cost);
  void ChargeLater(const Sequence& sequence, double cost);
  void ChargeAll();

  // ---- results.cc ----
  void CompleteStep(const StepInFlight& step);
  void PrefetchWork(const StepInFlight& step, size_t i) const;
  void CompleteWork(const WorkInFlight& work, const SampledToken* sampled);
  void CountRows(const WorkInFlight& work);
  void PublishBlocks(Sequence& sequence);
  void UnpublishBlocks(const Sequence& sequence);
  void TakeToken(SequenceIndex index, TokenId token);

  // ---- ending.cc: leaving a slot, a queue, life ----
  void StopRunning(SequenceIndex index);
  void VacateSlot(int32_t dp_group, SlotId slot);
  void ReleaseSlot(int32_t dp_group, SlotId slot);
  void ReturnToQueue(SequenceIndex index, WaitCause cause);
  void End(SequenceIndex index, FinishReason reason);
  void CountWaiting(const Sequence& sequence, int32_t difference);
  void SwitchWaiting(Sequence& sequence, WaitCause cause);
  void SyncFairShare(TenantId tenant);

  // ---- workers.cc ----
  void ReserveMemory();
  void LoseGroup();
  void CountLosses();
  std::vector<SequenceIndex> Running() const;  // in order of arrival
  void EndTheLostTooOften();
  void EndWhatNoLongerFits();

  // ---- books.cc ----
  std::string FindDifference(const DpGroup& group) const;
  std::string FindDifferenceInBlocks(const DpGroup& group) const;
  std::string FindDifferenceInSlots(const DpGroup& group) const;
  std::string FindDifferenceInQueues() const;

  // ---- small sums ----
  int32_t NumBlocksFor(int64_t num_tokens) const {
    return static_cast<int32_t>((num_tokens + limits_.block_size - 1) / limits_.block_size);
  }
  int32_t NumBlocksAtMost(const Sequence& sequence) const {
    return NumBlocksFor(static_cast<int64_t>(sequence.num_prompt_tokens) + sequence.max_tokens);
  }
  static uint64_t StopTokenBit(TokenId token) { return uint64_t{1} << (static_cast<uint32_t>(token) % 64); }
  bool IsStop(const Sequence& sequence, TokenId token) const;
  void ResumeWaitClock(Sequence& sequence);
  WaitCause RunningCause(const Sequence& sequence) const;
  size_t NumSlots() const { return groups_.size() * static_cast<size_t>(limits_.max_num_seqs); }
  Slot& SlotOf(const Sequence& sequence) { return groups_[sequence.dp_group].slots[sequence.slot]; }

  const Limits limits_;
  Policy policy_;
  Stats stats_;
  TimeUs now_;
  std::vector<Output>* outputs_ = nullptr;  // of the call under way
  bool is_draining_ = false;

  // requests
  SequencePool sequences_;
  BufferPool buffers_;
  absl::flat_hash_map<RequestId, SequenceIndex> by_id_;  // looked up, never walked
  Deadlines deadlines_;
  uint64_t num_arrivals_ = 0;

  // order
  std::array<int32_t, kNumWaitCauses> num_waiting_for_ = {};  // by WaitCause
  FairShare fair_share_;
  std::vector<TenantQueue> queues_;  // by tenant
  std::vector<std::array<double, kNumPriorityClasses>> unbooked_charges_;
  std::vector<TenantId> tenants_with_charges_;
  Claim claim_;
  SequenceRef first_kept_by_pinned_;                // waits for other pinned sequences to end
  std::vector<SequenceRef> marked_blocked_;         // by the last pass
  std::vector<SequenceRef> marked_blocked_before_;  // by the one before it

  // the worker group
  bool group_stands_ = false;
  Epoch epoch_ = 0;
  std::vector<DpGroup> groups_;
  StepId next_step_ = 1;
  StepId last_completed_step_ = 0;
  StepsInFlight steps_;
  std::vector<ReleasedSlot> released_;  // since the last plan
  WorkerDowntime downtime_;
  std::vector<SequenceRef> lost_too_often_;
  int64_t num_evictions_before_ = 0;  // in groups that are gone

  Pass pass_;
};

}  // namespace weir::scheduler
