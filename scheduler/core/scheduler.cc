#include "scheduler/core/scheduler.h"

#include <algorithm>
#include <limits>
#include <string>

#include "scheduler/core/check.h"
#include "scheduler/core/state.h"

namespace weir::scheduler {
namespace {

constexpr size_t kMaxMarked = 32;  // more than the requests that a pass tries in vain (claims.cc)

}  // namespace

// ---- the two central functions ----

void Scheduler::State::Apply(TimeUs now, const Event& event, std::vector<Output>& outputs) {
  Begin(now, outputs);
  FinishExpired();
  std::visit([this](const auto& happened) { On(happened); }, event);
  RefreshGauges();
}

bool Scheduler::State::Plan(TimeUs now, StepPlan& plan, std::vector<Output>& outputs) {
  Begin(now, outputs);
  FinishExpired();
  plan.Clear();
  const bool has_plan = CanPlan() && PlanStep(plan);
  RefreshGauges();
  return has_plan;
}

// A pass that found no work may have preempted somebody, or ended whose deadline cannot be met any more: the blocks and
// the slot are at hand at once when no step is in flight.  Then it is worth another pass.  Neither happens to a
// sequence without end, and so the passes end too.
bool Scheduler::State::PlanStep(StepPlan& plan) {
  do {
    BeginPass(plan);
    MakeRoomForClaim();
    PlanDecodeRows();
    PlanPromptRows();
  } while (!HasWork() && steps_.empty() && pass_.num_stopped > 0);
  if (!HasWork()) return false;
  SendPlan();
  return true;
}

// ----

Scheduler::State::State(const Limits& limits, const Policy& policy)
    : limits_(limits), now_(std::numeric_limits<TimeUs>::min()), steps_(std::max(limits.max_steps_in_flight, 1)) {
  WEIR_CHECK(limits.block_size >= 1, "limits: block_size must be at least 1");
  WEIR_CHECK(limits.max_num_seqs >= 1, "limits: max_num_seqs must be at least 1");
  WEIR_CHECK(limits.max_num_batched_tokens >= limits.max_num_seqs,
             "limits: max_num_batched_tokens must be at least max_num_seqs");
  WEIR_CHECK(limits.max_model_len >= 2 && limits.max_model_len < std::numeric_limits<int32_t>::max(),
             "limits: max_model_len must be from 2 to 2^31 - 2");
  WEIR_CHECK(limits.max_steps_in_flight >= 1, "limits: max_steps_in_flight must be at least 1");
  marked_blocked_.reserve(kMaxMarked);
  marked_blocked_before_.reserve(kMaxMarked);
  On(PolicyChanged{policy});
}

void Scheduler::State::On(const PolicyChanged& changed) {
  const std::string error = FindPolicyError(changed.policy);
  WEIR_CHECK(error.empty(), error.c_str());
  policy_ = changed.policy;
  fair_share_.SetPolicy(policy_.tenants);
  queues_.resize(policy_.tenants.size());
  unbooked_charges_.resize(policy_.tenants.size());
  tenants_with_charges_.reserve(policy_.tenants.size());
}

void Scheduler::State::Begin(TimeUs now, std::vector<Output>& outputs) {
  WEIR_CHECK(now >= now_, "time does not go back");
  now_ = now;
  outputs_ = &outputs;
}

void Scheduler::State::FinishExpired() {
  while (deadlines_.earliest() <= now_ && deadlines_.earliest() != kNever) {
    End(deadlines_.first(), FinishReason::kDeadline);
  }
}

void Scheduler::State::RefreshGauges() {
  stats_.num_waiting_for_blocks = num_waiting_for_[static_cast<int>(WaitCause::kBlocks)];
  stats_.num_waiting_for_slots = num_waiting_for_[static_cast<int>(WaitCause::kSlots)];
  stats_.num_preempted = num_waiting_for_[static_cast<int>(WaitCause::kPreempted)];
  stats_.num_recovering = num_waiting_for_[static_cast<int>(WaitCause::kRecovering)];
  stats_.num_running = 0;
  stats_.prefix_cache_evictions = num_evictions_before_;
  stats_.blocks_total = stats_.blocks_free = stats_.blocks_cached = stats_.blocks_owned = 0;
  for (const DpGroup& group : groups_) {
    stats_.num_running += group.num_running;
    stats_.blocks_total += group.pool.num_total();
    stats_.blocks_free += group.pool.num_free();
    stats_.blocks_cached += group.pool.num_cached();
    stats_.blocks_owned += group.pool.num_owned();
    stats_.prefix_cache_evictions += group.pool.num_evictions();
  }
  stats_.steps_in_flight = steps_.size();
}

// ---- the public face ----

Scheduler::Scheduler(const Limits& limits, const Policy& policy) : state_(std::make_unique<State>(limits, policy)) {}
Scheduler::~Scheduler() = default;
void Scheduler::Apply(TimeUs now, const Event& event, std::vector<Output>& outputs) {
  state_->Apply(now, event, outputs);
}
bool Scheduler::Plan(TimeUs now, StepPlan& plan, std::vector<Output>& outputs) {
  return state_->Plan(now, plan, outputs);
}
TimeUs Scheduler::wake_time() const { return state_->wake_time(); }
const Stats& Scheduler::stats() const { return state_->stats(); }
std::span<const TokenId> Scheduler::tokens(RequestId id) const { return state_->tokens(id); }
double Scheduler::service(TenantId tenant) const { return state_->service(tenant); }
double Scheduler::virtual_counter(TenantId tenant) const { return state_->virtual_counter(tenant); }
std::vector<Scheduler::SequenceView> Scheduler::Sequences() const { return state_->Sequences(); }
std::string Scheduler::CheckBooks() const { return state_->CheckBooks(); }

}  // namespace weir::scheduler
