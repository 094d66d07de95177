#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "scheduler/core/events.h"
#include "tools/sim/random.h"

// One request as the simulator knows it: what was asked, what the model must answer, what has been delivered, and where
// the workers hold it.  Nothing in here comes from the scheduler's own books.

namespace weir::sim {

inline constexpr uint64_t kEmptyChain = 0x5eed;

// The model: the state after a token depends on all tokens before it, and the next token on the state alone.  So a
// sequence recomputed, resumed elsewhere or read from a shared prefix goes on with the same tokens, and a row that
// reads anything but its own sequence goes on with others.
inline uint64_t ChainAfter(uint64_t chain, scheduler::TokenId token) {
  return Mix(chain, static_cast<uint64_t>(token));
}
inline scheduler::TokenId NextToken(uint64_t chain, int32_t vocabulary) {
  return static_cast<scheduler::TokenId>(Mix(chain, 0x70c3) % static_cast<uint64_t>(vocabulary));
}

// Who may read a position of the cache: everybody, one tenant, or one request alone.
using Domain = uint64_t;
inline constexpr Domain kShared = 1;
inline Domain TenantDomain(scheduler::TenantId tenant) { return 2 + static_cast<Domain>(tenant); }
inline Domain RequestDomain(scheduler::RequestId id) { return id << 32; }

struct Request {
  scheduler::Arrival arrival;
  int32_t num_shared_blocks = 0;  // of block_keys: within a prefix registered for all tenants
  scheduler::TimeUs arrived_at = 0;

  // ---- the truth ----
  std::vector<scheduler::TokenId> tokens;  // prompt, output, and the sampled tokens that nobody has been told yet
  std::vector<uint64_t> chain;             // chain[p]: the model's state after token p
  int32_t num_known = 0;                   // tokens that the scheduler may know: prompt, resumed, delivered
  int32_t num_sampled = 0;                 // tokens whose sampling step has completed

  // ---- the client's side ----
  bool is_live = false;  // admitted, no terminal yet
  bool is_cancelled = false;
  scheduler::Cancel::Reason cancel_reason = scheduler::Cancel::Reason::kClient;
  bool was_not_finite = false;
  bool has_failed = false;
  int32_t live_index = -1;
  bool is_counted_waiting = false;  // in the measure of fairness

  // ---- the workers' side ----
  int32_t dp_group = -1;  // -1: waiting
  scheduler::SlotId slot = -1;
  uint32_t life = 0;  // counts its stays in a slot
  std::vector<scheduler::BlockId> table;
  int32_t num_planned = 0;          // positions computed or in flight
  int32_t num_ever_planned = 0;     // the most that num_planned has been
  int32_t num_computed = 0;         // positions of completed steps
  scheduler::StepId last_step = 0;  // the last that works on it
  bool last_samples = false;        // ... and chooses a token
  bool is_poisoned = false;         // a row in flight is broken
  bool is_decoding = false;         // has sampled since it got its slot
  int32_t num_cached = -1;          // prompt tokens found in the cache at first admission; -1: not admitted yet
  int32_t num_in_flight = 0;        // works planned and not completed
  int32_t num_preemptions = 0;
  bool must_be_pinned = false;       // has been preempted as often as the policy of the time allowed
  int32_t num_losses_holding = 0;    // worker losses while it held a slot or had rows in flight
  int32_t num_losses_in_flight = 0;  // ... while a step in flight worked on it
  int64_t num_rows_planned = 0;
  int64_t num_rows_completed = 0;
  int64_t num_rows_completed_last = 0;  // by the last step that worked on it

  scheduler::RequestId id() const { return arrival.id; }
  int32_t num_prompt() const { return static_cast<int32_t>(arrival.prompt.size()); }
  int32_t max_len() const { return num_prompt() + arrival.max_tokens; }
  bool is_running() const { return slot >= 0; }

  // Blocks for all it may compute: the last token is delivered, never computed.
  int32_t max_blocks(int32_t block_size) const { return (max_len() - 1 + block_size - 1) / block_size; }

  Domain domain_at(int32_t position, int32_t block_size) const {
    const int32_t block = position / block_size;
    if (block < num_shared_blocks) return kShared;
    if (block < static_cast<int32_t>(arrival.block_keys.size())) return TenantDomain(arrival.tenant);
    return RequestDomain(arrival.id);
  }

  // Adds the token that the model chooses after `position`, if it is not known yet.
  void Foresee(int32_t position, int32_t vocabulary) {
    if (position + 1 < static_cast<int32_t>(tokens.size())) return;
    Append(NextToken(chain[static_cast<size_t>(position)], vocabulary));
  }
  void Append(scheduler::TokenId token) {
    chain.push_back(ChainAfter(chain.empty() ? kEmptyChain : chain.back(), token));
    tokens.push_back(token);
  }
};

}  // namespace weir::sim
