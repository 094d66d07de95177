#pragma once

#include <bit>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "worker/rank.h"
#include "worker/step_plan.h"

// Drives one rank by hand: sequences that a test advances as it likes, with blocks it chooses, and what was computed
// for every position, to the last bit.

namespace weir::worker {

// The 20 most likely tokens after a position, with the bits of their log-probabilities.
using Distribution = std::vector<std::pair<int32_t, uint32_t>>;
// By position.
using Distributions = std::map<int32_t, Distribution>;

struct TestSequence {
  std::vector<int32_t> prompt;
  std::vector<int32_t> generated;  // so far, the last one not computed
  std::vector<int32_t> blocks;     // all it may use, in order
  SlotId slot = 0;
  int32_t num_computed = 0;  // positions; > 0 at the start: a cached prefix
  bool is_new = true;        // has no slot yet: its next work carries the setup
  int32_t num_blocks_sent = 0;
  Distributions distributions;

  int32_t num_known() const { return static_cast<int32_t>(prompt.size() + generated.size()); }
  bool is_prefilling() const { return num_computed < num_known() - 1 || generated.empty(); }
  // As after a preemption: slot and blocks are new, every position is to be computed again.
  void Restart(SlotId new_slot, std::vector<int32_t> new_blocks);
};

struct TestWork {
  TestSequence* sequence;
  int32_t num_tokens;  // at most what is known and not computed
};

class StepRunner {
 public:
  explicit StepRunner(Rank* rank) : rank_(rank) {}

  // One step.  A sequence samples when all it knows is computed.  CHECKs that all went well.
  void Run(const std::vector<TestWork>& work);
  // Advances one sequence alone until it has `num_generated` tokens, with at most `chunk` tokens a step.
  void RunAlone(TestSequence& sequence, size_t num_generated, int32_t chunk);
  void Release(const TestSequence& sequence);

 private:
  Rank* rank_;
  uint64_t step_id_ = 0;
  std::vector<StepPlan::ReleasedSlot> released_;
};

// Where two runs differ, for people; empty when every position of `part` has the same bits in `whole`.
std::string Difference(const Distributions& whole, const Distributions& part);

// Deterministic tokens of the tiny models' vocabulary; sequences of equal seed and different length share a prefix.
std::vector<int32_t> SomeTokens(uint32_t seed, int32_t count);

}  // namespace weir::worker
