#include "tests/sim/plan_rules.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_format.h"

namespace weir::sim {

using scheduler::Policy;
using scheduler::StepPlan;

namespace {

// Room may be kept for one whose turn it is, for a few plans.
constexpr int32_t kMaxIdlePlans = 24;

}  // namespace

void PlanRules::BeforePlan(size_t num_tenants) {
  counters_.clear();
  for (size_t t = 0; t < num_tenants; ++t) counters_.push_back(counter_(static_cast<scheduler::TenantId>(t)));
  holders_.clear();
  for (const Request* request : clients_.live()) {
    if (request->is_running())
      holders_.push_back({request, request->dp_group, request->life, request->is_decoding,
                          request->num_planned + 1 >= request->max_len()});
  }
}

void PlanRules::AfterPlan(const StepPlan& plan, const Policy& policy, std::span<Request* const> preempted) {
  CheckLimits(plan, policy);
  CheckDecodeFloor(plan, preempted);
  CheckRoomIsUsed(policy, preempted);
  CheckThrash(plan, preempted);
}

void PlanRules::CheckLimits(const StepPlan& plan, const Policy& policy) const {
  if (std::ssize(workers_.in_flight()) > limits_.max_steps_in_flight) {
    report_.Broken("limits", absl::StrFormat("%d steps in flight", workers_.in_flight().size()));
  }
  for (const Workers::GroupLoad& load : workers_.load()) {
    if (load.num_rows > limits_.max_num_batched_tokens) {
      report_.Broken("limits", absl::StrFormat("%d rows in a step, max_num_batched_tokens is %d", load.num_rows,
                                               limits_.max_num_batched_tokens));
    }
    if (load.num_decode_rows > 0 && load.num_chunk_rows > policy.max_prompt_tokens_while_decoding) {
      report_.Broken("limits",
                     absl::StrFormat("%d rows of prompts beside %d decoding, the policy says %d", load.num_chunk_rows,
                                     load.num_decode_rows, policy.max_prompt_tokens_while_decoding));
    }
  }
  int32_t num_prompt_rows = 0;
  int32_t num_rows = 0;
  for (const FlyingWork& work : workers_.in_flight().back().work) {
    num_prompt_rows += work.num_prompt_rows;
    num_rows += work.num_tokens;
  }
  if (plan.num_prompt_rows != num_prompt_rows || plan.num_generated_rows != num_rows - num_prompt_rows) {
    report_.Broken("plan_shape", absl::StrFormat("the plan counts %d + %d rows and has %d + %d", plan.num_prompt_rows,
                                                 plan.num_generated_rows, num_prompt_rows, num_rows - num_prompt_rows));
  }
}

bool PlanRules::IsAheadOfTheWaiting(const Request& request) const {
  const auto counter = [this](const Request& one) { return counters_[static_cast<size_t>(one.arrival.tenant)]; };
  return std::any_of(clients_.live().begin(), clients_.live().end(), [&](const Request* other) {
    const bool was_decoding = std::any_of(holders_.begin(), holders_.end(), [&](const Holder& holder) {
      return holder.request == other && holder.was_decoding;
    });
    return !was_decoding && counter(*other) < counter(request);
  });
}

bool PlanRules::WasPressed(int32_t dp_group, std::span<Request* const> preempted) const {
  return std::any_of(holders_.begin(), holders_.end(), [&](const Holder& holder) {
    return holder.dp_group == dp_group &&
           std::find(preempted.begin(), preempted.end(), holder.request) != preempted.end();
  });
}

// The token to compute is known, or is being sampled by the step just before.
bool PlanRules::CouldDecode(const Request& request, scheduler::StepId step) const {
  if (!request.is_decoding || request.num_planned + 1 >= request.max_len()) return false;
  const bool is_known = request.num_planned + 1 == request.num_known;
  const bool is_coming = request.num_planned >= request.num_known && request.last_samples &&
                         request.last_step + 1 == step && request.num_in_flight > 0;
  return is_known || is_coming;
}

// A block may be kept from one whose tenant is ahead of another that waits for room; and where somebody was preempted,
// it may have come free after the one who needed it was looked at.
void PlanRules::CheckDecodeFloor(const StepPlan& plan, std::span<Request* const> preempted) const {
  for (const Holder& holder : holders_) {
    const Request& request = *holder.request;
    const bool was_left_out = request.is_running() && request.life == holder.life && request.last_step != plan.step;
    if (!was_left_out || !CouldDecode(request, plan.step)) continue;
    const Workers::GroupLoad& load = workers_.load()[static_cast<size_t>(request.dp_group)];
    const bool has_block = request.num_planned < std::ssize(request.table) * limits_.block_size;
    const bool is_block_left = workers_.num_available(request.dp_group) > 0 || load.num_blocks_to_chunks > 0;
    const bool may_be_kept_from_it = WasPressed(request.dp_group, preempted) || IsAheadOfTheWaiting(request);
    if (!has_block && (!is_block_left || may_be_kept_from_it)) continue;
    report_.Broken("decode_floor",
                   absl::StrFormat("request %d could decode position %d and is left out of step %d with "
                                   "%d rows of prompts",
                                   request.id(), request.num_planned, plan.step, load.num_chunk_rows));
  }
}

// The latest arrival of its tenant, not pinned, and not about to end anyway.
void PlanRules::CheckPreempted(std::span<Request* const> preempted) const {
  for (const Request* victim : preempted) {
    if (victim->must_be_pinned) {
      report_.Broken("preemption", absl::StrFormat("request %d is preempted once more after %d times", victim->id(),
                                                   victim->num_preemptions));
    }
    const auto was =
        std::find_if(holders_.begin(), holders_.end(), [&](const Holder& holder) { return holder.request == victim; });
    if (was->is_all_planned) {
      report_.Broken("preemption",
                     absl::StrFormat("request %d is preempted while its last token is being sampled", victim->id()));
    }
    for (const Holder& holder : holders_) {
      const Request& other = *holder.request;
      const bool stays = other.is_running() && other.life == holder.life && holder.dp_group == was->dp_group;
      const bool is_later = other.id() > victim->id() && other.arrival.tenant == victim->arrival.tenant &&
                            !other.must_be_pinned && !holder.is_all_planned;
      if (!stays || !is_later) continue;
      report_.Broken("preemption",
                     absl::StrFormat("request %d is preempted, request %d of its tenant came later and stays",
                                     victim->id(), other.id()));
    }
  }
}

// A slot, rows and blocks for any of the waiting are left, plan after plan, and nobody was admitted into them.  A
// pinned one may need more than is free: all that the pinned ones of a group can ever hold.
void PlanRules::CheckRoomIsUsed(const Policy& policy, std::span<Request* const> preempted) {
  int32_t most_blocks = 0;
  for (const Request* request : clients_.live()) {
    const bool just_left = std::find(preempted.begin(), preempted.end(), request) != preempted.end();
    if (request->is_running() || just_left) continue;
    if (request->must_be_pinned) most_blocks = std::numeric_limits<int32_t>::max() / 2;
    most_blocks = std::max(most_blocks, request->max_blocks(limits_.block_size) + 1);
  }
  idle_plans_.resize(static_cast<size_t>(workers_.num_dp_groups()), 0);
  for (int32_t group = 0; group < workers_.num_dp_groups(); ++group) {
    const Workers::GroupLoad& load = workers_.load()[static_cast<size_t>(group)];
    const int32_t rows_left = std::min(limits_.max_num_batched_tokens - load.num_rows,
                                       policy.max_prompt_tokens_while_decoding - load.num_chunk_rows);
    const int32_t num_blocks = workers_.num_available(group) - NumPromised(group);
    const bool has_room = most_blocks > 0 && num_blocks >= most_blocks && rows_left > 0 &&
                          workers_.num_free_slots(group) > 0 && !WasPressed(group, preempted);
    int32_t& num_idle = idle_plans_[static_cast<size_t>(group)];
    num_idle = has_room ? num_idle + 1 : 0;
    if (num_idle < kMaxIdlePlans) continue;
    report_.Broken("idle_room",
                   absl::StrFormat("for %d plans group %d has had a slot, rows and blocks left (now %d) while "
                                   "requests wait",
                                   num_idle, group, num_blocks));
  }
}

// Blocks that running prompts will need for the tokens they have.
int32_t PlanRules::NumPromised(int32_t dp_group) const {
  int32_t num_blocks = 0;
  for (const Request* request : clients_.live()) {
    if (!request->is_running() || request->dp_group != dp_group) continue;
    const int32_t needed = (request->num_known + limits_.block_size - 1) / limits_.block_size;
    num_blocks += std::max(0, needed - static_cast<int32_t>(request->table.size()));
  }
  return num_blocks;
}

// To move to a group with more room is a reason to leave a slot; to come back to the same group is none.
void PlanRules::CheckThrash(const StepPlan& plan, std::span<Request* const> preempted) const {
  for (const Request* victim : preempted) {
    if (!victim->is_running() || victim->last_step != plan.step) continue;
    const auto was =
        std::find_if(holders_.begin(), holders_.end(), [&](const Holder& holder) { return holder.request == victim; });
    if (was->dp_group != victim->dp_group) continue;
    report_.Broken("preemption", absl::StrFormat("request %d leaves group %d and comes back in one plan", victim->id(),
                                                 was->dp_group));
  }
}

void PlanRules::CheckIdle() const {
  if (!workers_.stands() || !workers_.in_flight().empty()) return;
  for (const Request* request : clients_.live()) {
    if (request->max_blocks(limits_.block_size) + 1 > workers_.blocks_per_dp_group()) continue;
    return report_.Broken("liveness", absl::StrFormat("the group is idle, and request %d could run", request->id()));
  }
}

}  // namespace weir::sim
