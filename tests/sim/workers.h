#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <vector>

#include "scheduler/core/events.h"
#include "scheduler/core/step_plan.h"
#include "tests/sim/request.h"
#include "tests/sim/violation.h"

// A worker group made of integers.  It believes nothing: every plan is held against what the workers themselves know,
// and every row must find exactly its own sequence's earlier tokens in the cache.
//
// Steps run in the order of their plans, so a plan is executed at once; what it sampled waits until the step completes.
//
// Why checking a block when it is attached is enough for all later reads: from then on until it is let go, only its one
// owner may write to it (checked at every write), and nobody may get it as new (checked at every allocation).  ReadAll
// tests this induction itself, position by position.

namespace weir::sim {

// One sequence's part of a step in flight.
struct FlyingWork {
  Request* request = nullptr;
  uint32_t life = 0;
  int32_t first_position = 0;
  int32_t num_tokens = 0;
  bool samples = false;
  int32_t num_prompt_rows = 0;
};

struct FlyingStep {
  scheduler::Epoch epoch = 0;
  scheduler::StepId step = 0;
  std::vector<FlyingWork> work;
  std::vector<scheduler::SampledToken> sampled;
};

class Workers {
 public:
  // `vocabulary` sizes the model's answers; `find` gives the request of an id, null when there was none.
  Workers(const scheduler::Limits& limits, int32_t vocabulary, std::function<Request*(scheduler::RequestId)> find,
          Report& report);

  void Form(scheduler::Epoch epoch, int32_t num_dp_groups, int32_t blocks_per_dp_group);
  // Everything held or in flight is gone.
  void Lose();
  // Runs the plan and queues its step.  `tokens` are the scheduler's known tokens of a request.
  using KnownTokens = std::function<std::span<const scheduler::TokenId>(scheduler::RequestId)>;
  void Execute(const scheduler::StepPlan& plan, const KnownTokens& known);
  // The oldest step in flight becomes complete: its content may be shared from now on.
  FlyingStep Complete();
  // The request has ended or is preempted: its blocks are its own no more.  Its slot stays taken until a plan releases
  // it, which may be later than the plan that gives its blocks away, but not later than the slot's next use.
  void Forget(Request& request);

  // A row breaks: the oldest step in flight that samples for the request will say so.  False if there is none.
  enum class Breakage { kNotFinite, kFailed };
  bool BreakRow(Breakage breakage, uint64_t pick);

  // Every position of every running sequence, compared with the truth.  Costs in proportion to the cache.
  void ReadAll(std::span<Request* const> running);

  bool stands() const { return num_dp_groups_ > 0; }
  scheduler::Epoch epoch() const { return epoch_; }
  int32_t num_dp_groups() const { return num_dp_groups_; }
  int32_t blocks_per_dp_group() const { return blocks_per_dp_group_; }
  int64_t num_owned() const { return num_owned_; }
  // Blocks whose owner is gone and whose last step is not: a scheduler may keep them back until it has completed.  One
  // more for each such owner: the block for its next row, which no plan has named.
  int64_t num_lingering() const;
  // Blocks that the scheduler may surely hand out.
  int32_t num_available(int32_t dp_group) const;
  int32_t num_free_slots(int32_t dp_group) const { return free_slots_[static_cast<size_t>(dp_group)]; }
  const std::deque<FlyingStep>& in_flight() const { return in_flight_; }
  scheduler::StepId last_planned() const { return last_planned_; }

  // Rows of the last plan, by data-parallel group.
  struct GroupLoad {
    int32_t num_rows = 0;
    int32_t num_chunk_rows = 0;   // of works that are not one decoding row
    int32_t num_decode_rows = 0;  // works of one row that follows the token sampled before
    int32_t num_chunks = 0;
    int32_t num_blocks_to_chunks = 0;
    int32_t num_admitted = 0;
  };
  std::span<const GroupLoad> load() const { return load_; }

 private:
  struct Cell {
    uint64_t chain = 0;
    Domain domain = 0;  // 0: never written since the block was allocated
    scheduler::StepId step = 0;
    bool is_broken = false;
  };

  size_t block_index(int32_t dp_group, scheduler::BlockId block) const {
    return static_cast<size_t>(dp_group) * static_cast<size_t>(blocks_per_dp_group_) + static_cast<size_t>(block);
  }
  size_t slot_index(int32_t dp_group, scheduler::SlotId slot) const {
    return static_cast<size_t>(dp_group) * static_cast<size_t>(limits_.max_num_seqs) + static_cast<size_t>(slot);
  }
  Cell& cell(const Request& request, int32_t position);
  void ExecuteReleases(const scheduler::StepPlan& plan);
  void ExecuteWork(const scheduler::StepPlan& plan, const scheduler::PlannedWork& work, const KnownTokens& known,
                   FlyingStep& step);
  bool TakeSlot(const scheduler::PlannedWork& work, Request& request);
  void GrowTable(const scheduler::StepPlan& plan, const scheduler::PlannedWork& work, Request& request);
  void AllocateBlock(const Request& request, scheduler::BlockId block);
  void AttachCached(Request& request, int32_t num_cached);
  void CheckSource(const scheduler::PlannedWork& work, const Request& request, const KnownTokens& known);
  void ComputeRows(const scheduler::PlannedWork& work, Request& request);
  void Sample(const scheduler::PlannedWork& work, Request& request, FlyingStep& step);
  void CountLoad(const scheduler::PlannedWork& work, const Request& request);
  struct Lingering {
    const Request* request;
    int32_t dp_group;
    int32_t num_blocks;
  };
  void Settle();
  void Hold(Request& request, scheduler::BlockId block);
  void LetGo(Request& request);

  const scheduler::Limits limits_;
  const int32_t vocabulary_;
  std::function<Request*(scheduler::RequestId)> find_;
  Report& report_;

  scheduler::Epoch epoch_ = 0;
  int32_t num_dp_groups_ = 0;
  int32_t blocks_per_dp_group_ = 0;
  scheduler::StepId last_planned_ = 0;
  scheduler::StepId last_completed_ = 0;
  std::vector<Cell> cells_;
  std::vector<int32_t> holders_;  // of each block
  std::vector<int32_t> unowned_;  // blocks without holders, by group
  std::vector<int32_t> free_slots_;
  std::vector<Lingering> lingering_;
  int64_t num_owned_ = 0;
  std::vector<Request*> slots_;  // who was put there last; null: free
  std::deque<FlyingStep> in_flight_;
  std::vector<GroupLoad> load_;
};

}  // namespace weir::sim
