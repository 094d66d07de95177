#include <algorithm>
#include <initializer_list>
#include <string>

#include "scheduler/core/state.h"

// What can be asked from outside, and the recount of everything that is kept as a running sum.

namespace weir::scheduler {
namespace {

struct Sum {
  const char* what;
  int64_t counted;
  int64_t kept;
};

std::string FirstDifference(std::initializer_list<Sum> sums) {
  for (const Sum& sum : sums) {
    if (sum.counted == sum.kept) continue;
    return std::string(sum.what) + ": " + std::to_string(sum.counted) + " counted, " + std::to_string(sum.kept) +
           " in the books";
  }
  return "";
}

}  // namespace

std::span<const TokenId> Scheduler::State::tokens(RequestId id) const {
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return {};
  return sequences_[found->second].tokens.view();
}

double Scheduler::State::service(TenantId tenant) const {
  double sum = 0;
  for (TenantId id = std::max(tenant, 0); id < fair_share_.num_tenants(); ++id) {
    TenantId ancestor = id;
    while (ancestor > tenant) ancestor = policy_.tenants[ancestor].parent;
    if (ancestor == tenant) sum += fair_share_.charged(id);
  }
  return sum;
}

double Scheduler::State::virtual_counter(TenantId tenant) const {
  return tenant >= 0 && tenant < fair_share_.num_tenants() ? fair_share_.counter(tenant) : 0;
}

std::vector<Scheduler::SequenceView> Scheduler::State::Sequences() const {
  std::vector<SequenceView> views;
  for (SequenceIndex index = 0; index < sequences_.size(); ++index) {
    const Sequence& sequence = sequences_[index];
    if (sequence.phase == Phase::kFree) continue;
    SequenceView view{.id = sequence.id,
                      .tenant = sequence.tenant,
                      .dp_group = sequence.dp_group,
                      .slot = sequence.slot,
                      .num_prompt_tokens = sequence.num_prompt_tokens,
                      .num_tokens = sequence.num_tokens(),
                      .num_computed_tokens = sequence.num_computed,
                      .num_planned_tokens = sequence.num_planned};
    if (sequence.is_running()) view.block_table = groups_[sequence.dp_group].slots[sequence.slot].block_table.view();
    views.push_back(view);
  }
  std::sort(views.begin(), views.end(), [](const SequenceView& a, const SequenceView& b) { return a.id < b.id; });
  return views;
}

std::string Scheduler::State::CheckBooks() const {
  for (size_t g = 0; g < groups_.size(); ++g) {
    if (const std::string difference = FindDifference(groups_[g]); !difference.empty()) {
      return "dp group " + std::to_string(g) + ": " + difference;
    }
  }
  return FindDifferenceInQueues();
}

std::string Scheduler::State::FindDifference(const DpGroup& group) const {
  const std::string difference = FindDifferenceInBlocks(group);
  return difference.empty() ? FindDifferenceInSlots(group) : difference;
}

std::string Scheduler::State::FindDifferenceInBlocks(const DpGroup& group) const {
  std::vector<int32_t> num_owners(group.pool.num_total());
  for (const Slot& slot : group.slots) {
    for (const BlockId block : slot.block_table.view()) ++num_owners[block];
  }
  int32_t num_free = 0, num_cached = 0;
  for (BlockId block = 0; block < group.pool.num_total(); ++block) {
    if (num_owners[block] != group.pool.num_owners(block)) {
      return "block " + std::to_string(block) + " is in " + std::to_string(num_owners[block]) + " tables and has " +
             std::to_string(group.pool.num_owners(block)) + " owners";
    }
    if (num_owners[block] > 0) continue;
    ++(group.pool.is_published(block) ? num_cached : num_free);
  }
  return FirstDifference(
      {{"free blocks", num_free, group.pool.num_free()}, {"cached blocks", num_cached, group.pool.num_cached()}});
}

std::string Scheduler::State::FindDifferenceInSlots(const DpGroup& group) const {
  int64_t num_draining_blocks = 0, num_promised_blocks = 0, num_pinned_blocks = 0;
  int32_t num_running = 0, num_free_slots = 0, num_prefilling = 0;
  for (const Slot& slot : group.slots) {
    if (slot.is_draining) num_draining_blocks += slot.block_table.size();
    if (slot.sequence == kNoSequence) {
      num_free_slots += slot.is_draining ? 0 : 1;
      continue;
    }
    const Sequence& sequence = sequences_[slot.sequence];
    ++num_running;
    num_prefilling += sequence.phase == Phase::kPrefilling ? 1 : 0;
    num_promised_blocks += sequence.num_promised_blocks;
    if (sequence.is_pinned) num_pinned_blocks += NumBlocksAtMost(sequence);
  }
  if (num_pinned_blocks > group.pool.num_total()) return "the pinned sequences do not fit together";
  return FirstDifference({{"running", num_running, group.num_running},
                          {"prefilling", num_prefilling, group.num_prefilling},
                          {"free slots", num_free_slots, static_cast<int64_t>(group.free_slots.size())},
                          {"draining blocks", num_draining_blocks, group.num_draining_blocks},
                          {"promised blocks", num_promised_blocks, group.num_promised_blocks},
                          {"pinned blocks", num_pinned_blocks, group.num_pinned_blocks}});
}

std::string Scheduler::State::FindDifferenceInQueues() const {
  int64_t num_waiting = 0, num_waiting_tokens = 0;
  std::array<int32_t, kNumWaitCauses> num_waiting_for = {};
  for (SequenceIndex index = 0; index < sequences_.size(); ++index) {
    const Sequence& sequence = sequences_[index];
    if (sequence.phase != Phase::kWaiting) continue;
    ++num_waiting;
    num_waiting_tokens += sequence.num_prompt_tokens;
    ++num_waiting_for[static_cast<int>(sequence.wait.cause())];
  }
  if (num_waiting_for != num_waiting_for_) return "waiting requests are miscounted by what they wait for";
  if (num_waiting != stats_.num_waiting) return "waiting requests are miscounted";
  if (num_waiting_tokens != stats_.num_waiting_tokens) return "waiting tokens are miscounted";
  for (size_t tenant = 0; tenant < queues_.size(); ++tenant) {
    num_waiting -= queues_[tenant].num_waiting();
    if (queues_[tenant].has_work() != fair_share_.is_queued(static_cast<TenantId>(tenant))) {
      return "tenant " + std::to_string(tenant) + " is queued without work, or has work without being queued";
    }
  }
  return num_waiting == 0 ? "" : "the tenants' queues do not add up";
}

}  // namespace weir::scheduler
