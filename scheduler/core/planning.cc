#include <algorithm>
#include <utility>

#include "scheduler/core/state.h"

// What a planned row takes: blocks, a line in the plan, a charge to its tenant.

namespace weir::scheduler {

void Scheduler::State::BeginPass(StepPlan& plan) {
  pass_ = {.number = pass_.number + 1, .plan = &plan};
  ReservePlan(plan);
  for (DpGroup& group : groups_) {
    group.work.clear();
    group.work_in_flight.clear();
    group.is_pressed = false;
    group.num_held_blocks = 0;
    group.num_counting_on_draining = 0;
    group.num_prefilling_left = group.num_prefilling;
  }
  std::swap(marked_blocked_, marked_blocked_before_);
  marked_blocked_.clear();
}

// The caller uses its plans again and again: with room for what a step may carry from the first one on, none of them
// grows in the middle of a step.  Only cached prefixes can make it more: many long ones found in one step.
void Scheduler::State::ReservePlan(StepPlan& plan) const {
  const size_t blocks_of_prompts = groups_.size() * NumBlocksFor(limits_.max_num_batched_tokens);
  plan.work.reserve(NumSlots());
  plan.released.reserve(NumSlots());
  plan.blocks.reserve(2 * (NumSlots() + blocks_of_prompts));
}

// Grows the block table for `num_rows` rows more, as far as there are blocks.  Returns for how many rows it reaches.
int32_t Scheduler::State::TakeBlocks(DpGroup& group, Sequence& sequence, int32_t num_rows) {
  // Nearly always the blocks it has reach far enough, and the slot is not looked at.
  if (sequence.num_planned + num_rows <= sequence.num_blocks_sent * limits_.block_size) return num_rows;
  IntBuffer& table = SlotOf(sequence).block_table;
  const int32_t wanted = NumBlocksFor(static_cast<int64_t>(sequence.num_planned) + num_rows);
  while (table.size() < wanted && NumWithinReach(group, sequence) > 0) {
    buffers_.Append(table, group.pool.Take());
    if (sequence.num_promised_blocks > 0) {
      --sequence.num_promised_blocks;
      --group.num_promised_blocks;
    }
  }
  const int64_t reach = static_cast<int64_t>(table.size()) * limits_.block_size - sequence.num_planned;
  return static_cast<int32_t>(std::min<int64_t>(num_rows, reach));
}

void Scheduler::State::AddWork(DpGroup& group, SequenceIndex index, int32_t num_rows) {
  Sequence& sequence = sequences_[index];
  PlannedWork work;
  work.id = sequence.id;
  work.dp_group = sequence.dp_group;
  work.slot = sequence.slot;
  work.is_new = std::exchange(sequence.is_new_in_slot, false);
  work.first_position = sequence.num_planned;
  work.num_tokens = num_rows;
  work.num_prompt_rows = std::clamp(sequence.num_prompt_tokens - work.first_position, 0, num_rows);
  work.takes_sampled_token = sequence.num_samples_in_flight > 0;
  work.samples = sequence.num_planned + num_rows == sequence.num_tokens() + sequence.num_samples_in_flight;

  AddBlocks(sequence, work);
  group.work.push_back(work);
  RememberWork(group, index, work);

  sequence.num_planned += num_rows;
  sequence.last_planned_step = next_step_;
  if (work.samples) {
    ++sequence.num_samples_in_flight;
    sequence.last_sampling_step = next_step_;
  }
}

// The blocks that the workers do not know of yet.
void Scheduler::State::AddBlocks(Sequence& sequence, PlannedWork& work) {
  std::vector<BlockId>& blocks = pass_.plan->blocks;
  work.first_new_block = sequence.num_blocks_sent;
  work.blocks_begin = work.blocks_end = static_cast<int32_t>(blocks.size());
  if (sequence.num_planned + work.num_tokens <= sequence.num_blocks_sent * limits_.block_size) return;
  const std::span<const BlockId> table = SlotOf(sequence).block_table.view();
  blocks.insert(blocks.end(), table.begin() + sequence.num_blocks_sent, table.end());
  work.blocks_end = static_cast<int32_t>(blocks.size());
  sequence.num_blocks_sent = static_cast<int32_t>(table.size());
}

void Scheduler::State::RememberWork(DpGroup& group, SequenceIndex index, const PlannedWork& work) {
  const Sequence& sequence = sequences_[index];
  const int32_t num_rows = work.num_tokens;
  pass_.plan->num_prompt_rows += work.num_prompt_rows;
  pass_.plan->num_generated_rows += num_rows - work.num_prompt_rows;
  group.work_in_flight.push_back(
      {.sequence = {.index = index, .request = sequence.request, .stay = sequence.stay},
       .dp_group = work.dp_group,
       .slot = work.slot,
       .num_rows = num_rows,
       .num_prompt_rows = work.num_prompt_rows,
       .num_recomputed_rows = std::clamp(sequence.planned_before - work.first_position, 0, num_rows),
       .samples = work.samples});
}

bool Scheduler::State::HasWork() const {
  return std::any_of(groups_.begin(), groups_.end(), [](const DpGroup& group) { return !group.work.empty(); });
}

void Scheduler::State::SendPlan() {
  StepPlan& plan = *pass_.plan;
  plan.epoch = epoch_;
  plan.step = next_step_++;
  plan.released.assign(released_.begin(), released_.end());
  released_.clear();
  StepInFlight& step = steps_.PushBack(plan.step);
  plan.work.swap(groups_[0].work);
  step.work.swap(groups_[0].work_in_flight);
  for (size_t g = 1; g < groups_.size(); ++g) {
    plan.work.insert(plan.work.end(), groups_[g].work.begin(), groups_[g].work.end());
    step.work.insert(step.work.end(), groups_[g].work_in_flight.begin(), groups_[g].work_in_flight.end());
  }
  ++stats_.steps_planned;
}

// ---- charges: when planned, so that the next pick sees what has been given although the step still runs ----

double Scheduler::State::CostOf(const Sequence& sequence, int32_t first_position, int32_t num_rows) const {
  const int32_t num_prompt_rows = std::clamp(sequence.num_prompt_tokens - first_position, 0, num_rows);
  const double rows = num_rows;
  const double context = rows * first_position + rows * (rows - 1) / 2;
  return num_prompt_rows * policy_.cost_per_prompt_token +
         (num_rows - num_prompt_rows) * policy_.cost_per_generated_token + context * policy_.cost_per_context_token;
}

void Scheduler::State::Charge(TenantId tenant, PriorityClass priority, double cost) {
  // A class can be behind or ahead by a few steps full of prompt rows, not more.
  const double bound = 4.0 * limits_.max_num_batched_tokens * std::max(policy_.cost_per_prompt_token, 1e-9);
  fair_share_.Charge(tenant, cost);
  queues_[tenant].Charge(priority, cost, policy_.min_class_share, bound);
}

// Thousands of decoding rows belong to hundreds of tenants: one charge for each tenant and class.
void Scheduler::State::ChargeLater(const Sequence& sequence, double cost) {
  std::array<double, kNumPriorityClasses>& charges = unbooked_charges_[sequence.tenant];
  if (charges == std::array<double, kNumPriorityClasses>{}) tenants_with_charges_.push_back(sequence.tenant);
  charges[static_cast<int>(sequence.priority)] += cost;
}

void Scheduler::State::ChargeAll() {
  for (const TenantId tenant : tenants_with_charges_) {
    for (int i = 0; i < kNumPriorityClasses; ++i) {
      const double cost = std::exchange(unbooked_charges_[tenant][i], 0.0);
      if (cost > 0) Charge(tenant, static_cast<PriorityClass>(i), cost);
    }
  }
  tenants_with_charges_.clear();
}

}  // namespace weir::scheduler
