#include "tests/sim/workers.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

namespace weir::sim {

using scheduler::BlockId;
using scheduler::PlannedWork;
using scheduler::StepPlan;

Workers::Workers(const scheduler::Limits& limits, int32_t vocabulary,
                 std::function<Request*(scheduler::RequestId)> find, Report& report)
    : limits_(limits), vocabulary_(vocabulary), find_(std::move(find)), report_(report) {}

void Workers::Form(scheduler::Epoch epoch, int32_t num_dp_groups, int32_t blocks_per_dp_group) {
  epoch_ = epoch;
  num_dp_groups_ = num_dp_groups;
  blocks_per_dp_group_ = blocks_per_dp_group;
  last_planned_ = last_completed_ = 0;
  const auto num_groups = static_cast<size_t>(num_dp_groups);
  const size_t num_blocks = num_groups * static_cast<size_t>(blocks_per_dp_group);
  cells_.assign(num_blocks * static_cast<size_t>(limits_.block_size), Cell{});
  holders_.assign(num_blocks, 0);
  unowned_.assign(num_groups, blocks_per_dp_group);
  free_slots_.assign(num_groups, limits_.max_num_seqs);
  slots_.assign(num_groups * static_cast<size_t>(limits_.max_num_seqs), nullptr);
  load_.assign(num_groups, GroupLoad{});
  num_owned_ = 0;
}

void Workers::Lose() {
  for (FlyingStep& step : in_flight_) {
    for (const FlyingWork& work : step.work) {
      work.request->num_in_flight = 0;
      work.request->is_poisoned = false;
    }
  }
  in_flight_.clear();
  Settle();
  for (Request* request : slots_) {
    if (request != nullptr && request->is_live) LetGo(*request);
  }
  num_dp_groups_ = 0;
}

void Workers::Execute(const StepPlan& plan, const KnownTokens& known) {
  std::fill(load_.begin(), load_.end(), GroupLoad{});
  if (plan.epoch != epoch_ || num_dp_groups_ == 0) {
    return report_.Broken("plan_shape", absl::StrFormat("plan for epoch %d while %d stands", plan.epoch, epoch_));
  }
  if (plan.step != last_planned_ + 1) {
    return report_.Broken("plan_shape", absl::StrFormat("step %d planned after step %d", plan.step, last_planned_));
  }
  if (plan.work.empty()) return report_.Broken("plan_shape", "a step without work");
  last_planned_ = plan.step;
  ExecuteReleases(plan);
  FlyingStep step{plan.epoch, plan.step, {}, {}};
  step.work.reserve(plan.work.size());
  int32_t dp_group = 0;
  int64_t num_blocks = 0;
  for (const PlannedWork& work : plan.work) {
    if (!report_.ok()) return;
    if (work.dp_group < dp_group) report_.Broken("plan_shape", "work is not in order of dp_group");
    dp_group = work.dp_group;
    num_blocks += work.blocks_end - work.blocks_begin;
    ExecuteWork(plan, work, known, step);
  }
  if (num_blocks != std::ssize(plan.blocks)) report_.Broken("plan_shape", "blocks in the plan that no work names");
  in_flight_.push_back(std::move(step));
}

void Workers::ExecuteReleases(const StepPlan& plan) {
  for (const scheduler::ReleasedSlot& released : plan.released) {
    if (released.dp_group < 0 || released.dp_group >= num_dp_groups_ || released.slot < 0 ||
        released.slot >= limits_.max_num_seqs) {
      return report_.Broken("slots", "a slot is released that does not exist");
    }
    Request*& holder = slots_[slot_index(released.dp_group, released.slot)];
    if (holder == nullptr) {
      return report_.Broken("slots",
                            absl::StrFormat("slot %d of group %d is released twice", released.slot, released.dp_group));
    }
    if (holder->is_live && holder->dp_group == released.dp_group && holder->slot == released.slot) {
      return report_.Broken("slots", absl::StrFormat("slot %d of group %d is released, and request %d runs in it",
                                                     released.slot, released.dp_group, holder->id()));
    }
    holder = nullptr;
    ++free_slots_[static_cast<size_t>(released.dp_group)];
  }
}

void Workers::ExecuteWork(const StepPlan& plan, const PlannedWork& work, const KnownTokens& known, FlyingStep& step) {
  Request* request = find_(work.id);
  if (request == nullptr || !request->is_live) {
    return report_.Broken("work_after_end", absl::StrFormat("request %d has ended and gets work", work.id));
  }
  if (!TakeSlot(work, *request)) return;
  if (request->last_step == plan.step) {
    return report_.Broken("plan_shape", absl::StrFormat("request %d is twice in a plan", work.id));
  }
  if (work.num_tokens < 1 || work.first_position < 0) return report_.Broken("plan_shape", "work without tokens");
  GrowTable(plan, work, *request);
  if (work.is_new) AttachCached(*request, work.first_position);
  if (!report_.ok()) return;
  if (work.first_position != request->num_planned) {
    return report_.Broken("positions", absl::StrFormat("request %d goes on at position %d, not at %d", work.id,
                                                       work.first_position, request->num_planned));
  }
  CheckSource(work, *request, known);
  if (!report_.ok()) return;
  CountLoad(work, *request);
  ComputeRows(work, *request);
  if (!report_.ok()) return;
  const int32_t end = work.first_position + work.num_tokens;
  step.work.push_back({request, request->life, work.first_position, work.num_tokens, work.samples,
                       std::clamp(request->num_prompt() - work.first_position, 0, work.num_tokens)});
  request->num_planned = end;
  request->num_rows_planned += work.num_tokens;
  request->last_step = plan.step;
  request->last_samples = work.samples;
  ++request->num_in_flight;
  if (work.samples) Sample(work, *request, step);
}

bool Workers::TakeSlot(const PlannedWork& work, Request& request) {
  if (work.dp_group < 0 || work.dp_group >= num_dp_groups_ || work.slot < 0 || work.slot >= limits_.max_num_seqs) {
    report_.Broken("slots", absl::StrFormat("request %d gets a slot that does not exist", work.id));
    return false;
  }
  if (!work.is_new) {
    if (request.dp_group == work.dp_group && request.slot == work.slot) return true;
    report_.Broken("slots", absl::StrFormat("request %d has slot %d of group %d, the plan says %d of %d", work.id,
                                            request.slot, request.dp_group, work.slot, work.dp_group));
    return false;
  }
  Request*& holder = slots_[slot_index(work.dp_group, work.slot)];
  if (holder != nullptr || request.is_running()) {
    report_.Broken("slots", absl::StrFormat("request %d is put in slot %d of group %d, %s", work.id, work.slot,
                                            work.dp_group, holder != nullptr ? "which is taken" : "and has one"));
    return false;
  }
  holder = &request;
  --free_slots_[static_cast<size_t>(work.dp_group)];
  request.dp_group = work.dp_group;
  request.slot = work.slot;
  ++request.life;
  request.num_planned = request.num_computed = 0;
  request.last_step = 0;
  request.last_samples = false;
  request.is_decoding = false;
  ++load_[static_cast<size_t>(work.dp_group)].num_admitted;
  return true;
}

void Workers::GrowTable(const StepPlan& plan, const PlannedWork& work, Request& request) {
  if (work.blocks_begin < 0 || work.blocks_end < work.blocks_begin || work.blocks_end > std::ssize(plan.blocks)) {
    return report_.Broken("plan_shape", absl::StrFormat("request %d: new blocks [%d, %d) of %d", work.id,
                                                        work.blocks_begin, work.blocks_end, plan.blocks.size()));
  }
  if (work.blocks_begin < work.blocks_end && work.first_new_block != std::ssize(request.table)) {
    return report_.Broken("blocks", absl::StrFormat("request %d: new blocks go to entry %d, its table has %d", work.id,
                                                    work.first_new_block, request.table.size()));
  }
  const int32_t num_cached_blocks = work.is_new ? work.first_position / limits_.block_size : 0;
  for (int32_t i = work.blocks_begin; i < work.blocks_end && report_.ok(); ++i) {
    const BlockId block = plan.blocks[static_cast<size_t>(i)];
    if (block < 0 || block >= blocks_per_dp_group_) {
      return report_.Broken("blocks",
                            absl::StrFormat("request %d gets block %d of %d", work.id, block, blocks_per_dp_group_));
    }
    if (i - work.blocks_begin >= num_cached_blocks) AllocateBlock(request, block);
    Hold(request, block);
  }
  const auto room = static_cast<int32_t>(request.table.size()) * limits_.block_size;
  if (work.first_position + work.num_tokens > room) {
    report_.Broken("blocks", absl::StrFormat("request %d computes to position %d, its blocks end at %d", work.id,
                                             work.first_position + work.num_tokens, room));
  }
  if (std::ssize(request.table) > request.max_blocks(limits_.block_size) + 1) {
    report_.Broken("blocks", absl::StrFormat("request %d has %d blocks and can never fill more than %d", work.id,
                                             request.table.size(), request.max_blocks(limits_.block_size)));
  }
}

void Workers::AllocateBlock(const Request& request, BlockId block) {
  const size_t index = block_index(request.dp_group, block);
  if (holders_[index] != 0) {
    return report_.Broken("blocks", absl::StrFormat("block %d of group %d goes to request %d and is in use", block,
                                                    request.dp_group, request.id()));
  }
  const auto begin = cells_.begin() + static_cast<int64_t>(index) * limits_.block_size;
  std::fill(begin, begin + limits_.block_size, Cell{});
}

void Workers::Hold(Request& request, BlockId block) {
  if (holders_[block_index(request.dp_group, block)]++ == 0) {
    ++num_owned_;
    --unowned_[static_cast<size_t>(request.dp_group)];
  }
  request.table.push_back(block);
}

int64_t Workers::num_lingering() const {
  int64_t sum = 0;
  for (const Lingering& gone : lingering_) sum += gone.num_blocks + 1;
  return sum;
}

int32_t Workers::num_available(int32_t dp_group) const {
  int32_t num_blocks = unowned_[static_cast<size_t>(dp_group)];
  for (const Lingering& gone : lingering_) num_blocks -= gone.dp_group == dp_group ? gone.num_blocks + 1 : 0;
  return num_blocks;
}

void Workers::Settle() {
  std::erase_if(lingering_, [](const Lingering& gone) { return gone.request->num_in_flight == 0; });
}

void Workers::LetGo(Request& request) {
  if (request.num_in_flight > 0) {
    lingering_.push_back({&request, request.dp_group, static_cast<int32_t>(request.table.size())});
  }
  for (const BlockId block : request.table) {
    if (--holders_[block_index(request.dp_group, block)] > 0) continue;
    --num_owned_;
    ++unowned_[static_cast<size_t>(request.dp_group)];
  }
  request.table.clear();
  request.dp_group = request.slot = -1;
  request.num_planned = request.num_computed = 0;
  request.is_decoding = request.is_poisoned = false;
}

void Workers::Forget(Request& request) {
  if (request.is_running()) LetGo(request);
}

Workers::Cell& Workers::cell(const Request& request, int32_t position) {
  const BlockId block = request.table[static_cast<size_t>(position / limits_.block_size)];
  return cells_[block_index(request.dp_group, block) * static_cast<size_t>(limits_.block_size) +
                static_cast<size_t>(position % limits_.block_size)];
}

// What came from the cache must be this sequence's own prompt, whole blocks of it, written by steps that have completed
// and meant for this tenant.
void Workers::AttachCached(Request& request, int32_t num_cached) {
  if (num_cached % limits_.block_size != 0 || num_cached > request.num_prompt() ||
      num_cached > static_cast<int32_t>(request.arrival.block_keys.size()) * limits_.block_size) {
    return report_.Broken(
        "kv_content",
        absl::StrFormat("request %d with %d prompt tokens and %d keys takes %d from the "
                        "cache",
                        request.id(), request.num_prompt(), request.arrival.block_keys.size(), num_cached));
  }
  for (int32_t p = 0; p < num_cached; ++p) {
    const Cell& held = cell(request, p);
    const char* fault = held.domain == 0                                          ? "that nobody has written"
                        : held.is_broken                                          ? "from a row that was broken"
                        : held.domain != request.domain_at(p, limits_.block_size) ? "that belongs to others"
                        : held.chain != request.chain[static_cast<size_t>(p)]     ? "with other tokens"
                        : held.step > last_completed_                             ? "that is still being written"
                                                                                  : nullptr;
    if (fault == nullptr) continue;
    return report_.Broken("kv_content",
                          absl::StrFormat("request %d takes position %d from the cache, %s", request.id(), p, fault));
  }
  if (request.num_cached < 0) request.num_cached = num_cached;
  request.num_planned = request.num_computed = num_cached;
}

// Where the work's token ids come from: the scheduler's known tokens, or the token that the step before samples.
void Workers::CheckSource(const PlannedWork& work, const Request& request, const KnownTokens& known) {
  const int32_t end = work.first_position + work.num_tokens;
  if (work.takes_sampled_token) {
    const bool follows = request.last_step + 1 == last_planned_ && request.last_samples && last_planned_ > 1 &&
                         last_completed_ < request.last_step;
    if (work.num_tokens != 1 || !follows) {
      report_.Broken("sampled_token", absl::StrFormat("request %d takes the token sampled in step %d, which %s",
                                                      work.id, last_planned_ - 1,
                                                      follows ? "is one" : "did not sample for it, or has completed"));
    }
  } else if (end > request.num_known) {
    return report_.Broken("positions", absl::StrFormat("request %d is to compute position %d and knows %d tokens",
                                                       work.id, end - 1, request.num_known));
  }
  const int32_t num_foreseen = work.takes_sampled_token ? end : request.num_known;
  if (work.samples != (end == num_foreseen)) {
    report_.Broken("sampled_token",
                   absl::StrFormat("request %d %s after position %d of %d tokens", work.id,
                                   work.samples ? "samples" : "does not sample", end - 1, num_foreseen));
  }
  if (end >= request.max_len()) {
    report_.Broken("positions", absl::StrFormat("request %d computes position %d and may have %d tokens", work.id,
                                                end - 1, request.max_len()));
  }
  const auto tokens = known(work.id);
  if (std::ssize(tokens) != request.num_known) {
    return report_.Broken("tokens", absl::StrFormat("request %d: the scheduler knows %d tokens, the client %d", work.id,
                                                    tokens.size(), request.num_known));
  }
  for (int32_t p = work.first_position; p < std::min(end, request.num_known); ++p) {
    if (tokens[static_cast<size_t>(p)] != request.tokens[static_cast<size_t>(p)]) {
      return report_.Broken("tokens",
                            absl::StrFormat("request %d: token %d is %d, the scheduler says %d", work.id, p,
                                            request.tokens[static_cast<size_t>(p)], tokens[static_cast<size_t>(p)]));
    }
  }
}

void Workers::ComputeRows(const PlannedWork& work, Request& request) {
  uint64_t chain = work.first_position == 0 ? kEmptyChain : cell(request, work.first_position - 1).chain;
  for (int32_t p = work.first_position; p < work.first_position + work.num_tokens; ++p) {
    const BlockId block = request.table[static_cast<size_t>(p / limits_.block_size)];
    if (holders_[block_index(request.dp_group, block)] != 1) {
      return report_.Broken("blocks",
                            absl::StrFormat("request %d writes to block %d, which others read", work.id, block));
    }
    Cell& written = cell(request, p);
    if (written.domain != 0) {
      return report_.Broken("positions", absl::StrFormat("request %d writes position %d twice", work.id, p));
    }
    chain = ChainAfter(chain, request.tokens[static_cast<size_t>(p)]);
    written = {chain, request.domain_at(p, limits_.block_size), last_planned_, request.is_poisoned};
    if (chain != request.chain[static_cast<size_t>(p)]) {
      return report_.Broken("kv_content",
                            absl::StrFormat("request %d at position %d read what is not its own", work.id, p));
    }
  }
}

void Workers::Sample(const PlannedWork& work, Request& request, FlyingStep& step) {
  const int32_t last = work.first_position + work.num_tokens - 1;
  request.Foresee(last, vocabulary_);
  request.is_decoding = true;
  scheduler::SampledToken sampled;
  sampled.dp_group = work.dp_group;
  sampled.slot = work.slot;
  sampled.token = NextToken(cell(request, last).chain, vocabulary_);
  step.sampled.push_back(sampled);
}

void Workers::CountLoad(const PlannedWork& work, const Request& request) {
  GroupLoad& load = load_[static_cast<size_t>(work.dp_group)];
  load.num_rows += work.num_tokens;
  if (request.is_decoding && work.num_tokens == 1) {
    ++load.num_decode_rows;
  } else {
    load.num_chunk_rows += work.num_tokens;
    ++load.num_chunks;
    load.num_blocks_to_chunks += work.blocks_end - work.blocks_begin;
  }
}

FlyingStep Workers::Complete() {
  FlyingStep step = std::move(in_flight_.front());
  in_flight_.pop_front();
  last_completed_ = step.step;
  for (const FlyingWork& work : step.work) {
    Request& request = *work.request;
    --request.num_in_flight;
    request.num_rows_completed += work.num_tokens;
    request.num_rows_completed_last = work.num_tokens;
    if (!request.is_live || request.life != work.life || !request.is_running()) continue;
    request.num_computed = work.first_position + work.num_tokens;
  }
  Settle();
  return step;
}

bool Workers::BreakRow(Breakage breakage, uint64_t pick) {
  for (FlyingStep& step : in_flight_) {
    if (step.sampled.empty()) continue;
    const auto index = static_cast<size_t>(pick % step.sampled.size());
    scheduler::SampledToken& sampled = step.sampled[index];
    size_t num_samples = 0;
    for (const FlyingWork& work : step.work) {
      if (!work.samples || num_samples++ != index) continue;
      Request& request = *work.request;
      if (!request.is_live || request.life != work.life || !request.is_running()) return false;
      request.is_poisoned = true;
      for (int32_t p = work.first_position; p < request.num_planned; ++p) cell(request, p).is_broken = true;
      break;
    }
    if (breakage == Breakage::kNotFinite) {
      sampled.is_finite = false;
    } else {
      sampled.has_failed = true;
    }
    return true;
  }
  return false;
}

void Workers::ReadAll(std::span<Request* const> running) {
  for (const Request* request : running) {
    for (int32_t p = 0; p < request->num_planned; ++p) {
      if (cell(*request, p).chain == request->chain[static_cast<size_t>(p)]) continue;
      return report_.Broken("kv_content",
                            absl::StrFormat("request %d lost position %d to somebody else", request->id(), p));
    }
  }
}

}  // namespace weir::sim
