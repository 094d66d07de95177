#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "scheduler/core/scheduler.h"

// A worker group that computes nothing but remembers everything: each row of KV is a number that stands for all tokens
// up to its position.  A row may be computed only on top of the right numbers, so a block handed out too early, a
// position left out or computed twice, or a wrong table shows at once.  The next token is a function of the tokens
// before it, so the right answer of every request is known beforehand.

namespace weir::scheduler {

// The tokens that a model which never errs gives to a prompt.
TokenId NextToken(std::span<const TokenId> tokens);

// Keys of the full blocks of a prompt; equal tokens give equal keys.
std::vector<BlockKey> KeysOf(std::span<const TokenId> prompt, int32_t block_size);

class FakeWorkers {
 public:
  FakeWorkers(int32_t num_dp_groups, int32_t num_blocks, int32_t num_slots, int32_t block_size);

  // Takes a plan.  `tokens_of` gives the known tokens of a request as the shell would send them.
  template <typename TokensOf>
  void Start(const StepPlan& plan, TokensOf tokens_of) {
    Step step{.plan = plan};
    for (const PlannedWork& work : plan.work) {
      const std::span<const TokenId> tokens = tokens_of(work.id);
      std::vector<TokenId> rows;
      if (!work.takes_sampled_token) {
        if (work.first_position + work.num_tokens > static_cast<int32_t>(tokens.size())) {
          Fail(work, "a row of a token that is not known");
        }
        rows.assign(tokens.begin() + work.first_position, tokens.begin() + work.first_position + work.num_tokens);
      }
      step.tokens.push_back(rows);
    }
    CheckBlocksAreFree(step);
    steps_.push_back(std::move(step));
  }

  int32_t num_in_flight() const { return static_cast<int32_t>(steps_.size()); }

  // Runs the oldest step and returns its result.
  StepCompleted Finish();

  // The first broken rule, in words; empty while all is well.
  const std::string& error() const { return error_; }

 private:
  struct Step {
    StepPlan plan;
    std::vector<std::vector<TokenId>> tokens;  // by work
  };
  struct Slot {
    RequestId id = 0;
    std::vector<BlockId> table;
    std::vector<TokenId> tokens;  // of the rows computed
    StepId sampled_in_step = 0;
    TokenId sampled = -1;
  };

  void Run(const PlannedWork& work, const Step& step, std::span<const TokenId> rows,
           std::vector<SampledToken>& sampled);
  void CheckBlocksAreFree(const Step& step);
  void Fail(const PlannedWork& work, const std::string& what);
  uint64_t& Row(const PlannedWork& work, const Slot& slot, int32_t position);

  int32_t block_size_;
  std::vector<std::vector<uint64_t>> rows_;  // [dp group][block * block_size + offset]
  std::vector<std::vector<Slot>> slots_;     // [dp group][slot]
  std::map<std::pair<int32_t, SlotId>, std::vector<BlockId>> planned_tables_;
  std::deque<Step> steps_;
  std::string error_;
};

}  // namespace weir::scheduler
