#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/sampling.h"
#include "worker/step_plan.h"

// What a rank remembers of its live sequences from one step to the next.  Bookkeeping only: the latents lie in the
// cache, and which blocks are whose is the plan's to say.

namespace weir::worker {

// How often each token occurred in a sequence so far, for the penalties of sampling.  Counts each token once, when it
// is first asked for.
class TokenHistory {
 public:
  // The counts over all of `tokens`; those before num_prompt_tokens count as prompt.  Valid until the next call.
  std::span<const kernels::TokenCount> Count(std::span<const int32_t> tokens, int32_t num_prompt_tokens);
  void Forget();

 private:
  void Add(int32_t token, bool in_prompt);

  std::vector<kernels::TokenCount> counts_;  // ascending token
  size_t num_counted_ = 0;                   // tokens [0, num_counted) are in counts_
};

struct Slot {
  bool is_live = false;
  uint64_t request_id = 0;
  uint64_t noise_key = 0;
  int32_t num_prompt_tokens = 0;
  kernels::SamplingParams sampling;
  kernels::SamplingParams reporting;  // for prompt log-probabilities: the alternatives, and nothing else

  // Every token that is known, by position: those of the setup, those that plans brought, and the one sampled last,
  // which has not run yet.
  //   [0, num_computed)              latents are in the cache
  //   [num_computed, tokens.size())  known, not computed
  std::vector<int32_t> tokens;
  int32_t num_setup_tokens = 0;  // the first of `tokens`, which no sampled token replaces
  int32_t num_computed = 0;
  std::vector<int32_t> block_table;
  TokenHistory history;
  uint64_t last_step = 0;  // of SlotTable, when it last had work

  // Takes the token after the last computed position, unless the setup brought it; -1 = it is not known.
  void AppendSampled(int32_t token);
  // Counts over the computed tokens; empty when no penalty asks for them.
  std::span<const kernels::TokenCount> History();
};

struct SlotLimits {
  int32_t max_num_seqs = 0;
  int32_t block_size = 0;
  int64_t num_blocks = 0;
  int64_t max_model_len = 0;
  int32_t vocab_size = 0;
};

class SlotTable {
 public:
  explicit SlotTable(const SlotLimits& limits);

  // Each slot may have work once between two calls.
  void BeginStep() { ++step_; }

  // Checks one sequence's work and makes it part of its slot: setup, block table, tokens; its positions count as
  // computed from here on.  An error says what to change about the work, and leaves the slot as it was.  The pointer is
  // valid until the slot's next work or release.
  absl::StatusOr<Slot*> Apply(const SequenceWork& work);

  void Release(SlotId slot);  // one that is not live, or out of range, is left alone
  void Clear();

 private:
  absl::Status CheckSetup(const SequenceSetup& setup) const;
  absl::Status CheckPositions(const Slot& slot, const SequenceWork& work) const;
  absl::Status CheckTokens(const Slot& slot, const SequenceWork& work) const;
  absl::Status CheckBlocks(const Slot& slot, const SequenceWork& work) const;

  SlotLimits limits_;
  uint64_t step_ = 0;
  std::vector<Slot> slots_;
};

}  // namespace weir::worker
