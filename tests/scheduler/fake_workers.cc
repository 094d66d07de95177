#include "tests/scheduler/fake_workers.h"

#include <algorithm>
#include <set>
#include <tuple>

namespace weir::scheduler {
namespace {

uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = a * 0x9E3779B97F4A7C15u + b + 0x632BE59BD9B4E019u;
  x ^= x >> 31;
  x *= 0xBF58476D1CE4E5B9u;
  return x ^ (x >> 29);
}

uint64_t PrefixNumber(std::span<const TokenId> tokens) {
  uint64_t number = 1;
  for (const TokenId token : tokens) number = Mix(number, static_cast<uint64_t>(token));
  return number;
}

}  // namespace

TokenId NextToken(std::span<const TokenId> tokens) { return static_cast<TokenId>(PrefixNumber(tokens) % 1000); }

std::vector<BlockKey> KeysOf(std::span<const TokenId> prompt, int32_t block_size) {
  std::vector<BlockKey> keys;
  uint64_t number = 1;
  for (size_t i = 0; i < prompt.size(); ++i) {
    number = Mix(number, static_cast<uint64_t>(prompt[i]));
    if ((i + 1) % block_size == 0) keys.push_back({.high = number, .low = Mix(number, 7)});
  }
  return keys;
}

FakeWorkers::FakeWorkers(int32_t num_dp_groups, int32_t num_blocks, int32_t num_slots, int32_t block_size)
    : block_size_(block_size),
      rows_(num_dp_groups, std::vector<uint64_t>(static_cast<size_t>(num_blocks) * block_size)),
      slots_(num_dp_groups, std::vector<Slot>(num_slots)) {}

// No row may be written to a block that a step in flight touches for another stay of a sequence.
void FakeWorkers::CheckBlocksAreFree(const Step& step) {
  std::map<std::pair<int32_t, BlockId>, std::pair<RequestId, SlotId>> touched;
  for (const Step& earlier : steps_) {
    for (const PlannedWork& work : earlier.plan.work) {
      for (const BlockId block : planned_tables_[{work.dp_group, work.slot}]) {
        touched[{work.dp_group, block}] = {work.id, work.slot};
      }
    }
  }
  for (const PlannedWork& work : step.plan.work) {
    std::vector<BlockId>& table = planned_tables_[{work.dp_group, work.slot}];
    if (work.is_new) table.clear();
    if (static_cast<int32_t>(table.size()) != work.first_new_block) Fail(work, "new blocks do not join the table");
    table.insert(table.end(), step.plan.blocks.begin() + work.blocks_begin, step.plan.blocks.begin() + work.blocks_end);
    for (int32_t p = work.first_position; p < work.first_position + work.num_tokens; ++p) {
      if (p / block_size_ >= static_cast<int32_t>(table.size())) return Fail(work, "a row without a block");
      const auto found = touched.find({work.dp_group, table[p / block_size_]});
      if (found != touched.end() && found->second != std::pair(work.id, work.slot)) {
        Fail(work, "writes to a block that a step in flight touches for " + std::to_string(found->second.first));
      }
    }
  }
}

StepCompleted FakeWorkers::Finish() {
  const Step step = std::move(steps_.front());
  steps_.pop_front();
  StepCompleted result{.epoch = step.plan.epoch, .step = step.plan.step};
  for (size_t i = 0; i < step.plan.work.size(); ++i) Run(step.plan.work[i], step, step.tokens[i], result.sampled);
  return result;
}

void FakeWorkers::Run(const PlannedWork& work, const Step& step, std::span<const TokenId> rows,
                      std::vector<SampledToken>& sampled) {
  Slot& slot = slots_[work.dp_group][work.slot];
  if (work.is_new) slot = {.id = work.id};
  if (slot.id != work.id) return Fail(work, "the slot belongs to another request");
  slot.table.insert(slot.table.end(), step.plan.blocks.begin() + work.blocks_begin,
                    step.plan.blocks.begin() + work.blocks_end);
  std::vector<TokenId> own(rows.begin(), rows.end());
  if (work.takes_sampled_token) {
    if (work.num_tokens != 1) return Fail(work, "one sampled token is one row");
    if (slot.sampled_in_step + 1 != step.plan.step) return Fail(work, "the step before sampled nothing for this slot");
    own = {slot.sampled};
  }
  // A cached prefix is in the blocks already; which tokens it stands for is known by the number of its last row.
  if (work.is_new && work.first_position > 0) slot.tokens.assign(work.first_position, -1);
  if (static_cast<int32_t>(slot.tokens.size()) != work.first_position) return Fail(work, "positions are not in order");
  uint64_t number = work.first_position == 0 ? 1 : Row(work, slot, work.first_position - 1);
  for (int32_t i = 0; i < work.num_tokens; ++i) {
    number = Mix(number, static_cast<uint64_t>(own[i]));
    Row(work, slot, work.first_position + i) = number;
    slot.tokens.push_back(own[i]);
  }
  if (!work.samples) return;
  slot.sampled = static_cast<TokenId>(number % 1000);
  slot.sampled_in_step = step.plan.step;
  sampled.push_back({.dp_group = work.dp_group, .slot = work.slot, .token = slot.sampled});
}

uint64_t& FakeWorkers::Row(const PlannedWork& work, const Slot& slot, int32_t position) {
  return rows_[work.dp_group]
              [static_cast<size_t>(slot.table[position / block_size_]) * block_size_ + position % block_size_];
}

void FakeWorkers::Fail(const PlannedWork& work, const std::string& what) {
  if (!error_.empty()) return;
  error_ = "request " + std::to_string(work.id) + ", slot " + std::to_string(work.slot) + ", position " +
           std::to_string(work.first_position) + ": " + what;
}

}  // namespace weir::scheduler
