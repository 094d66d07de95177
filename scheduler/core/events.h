#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "scheduler/core/policy.h"
#include "scheduler/core/types.h"

// What happens to the core, and what it says.  Events go in with the time they happened; outputs come out in order.

namespace weir::scheduler {

// ---- events ----

struct Arrival {
  RequestId id = 0;
  TenantId tenant = 0;
  PriorityClass priority = PriorityClass::kStandard;
  TimeUs deadline = kNever;          // absolute; nothing of the request runs after it
  std::vector<TokenId> prompt;       // at least one token
  std::vector<TokenId> resumed;      // generated elsewhere, delivered already; computed again, never emitted again
  std::vector<BlockKey> block_keys;  // of the prompt's full blocks, in order; empty = do not cache
  int32_t max_tokens = 0;            // output, resumed ones included; at least resumed.size() + 1
  int32_t min_tokens = 0;            // stop tokens before this count do not end the sequence
  std::vector<TokenId> stop_tokens;  // sampled stop tokens are emitted and end the sequence
};

// Ends a request in whatever state it is.  Unknown and finished ids are ignored.
struct Cancel {
  RequestId id = 0;
  enum class Reason : uint8_t { kClient, kStopString } reason = Reason::kClient;
};

struct SampledToken {
  int32_t dp_group = 0;
  SlotId slot = 0;
  TokenId token = -1;
  bool is_finite = true;    // false: the row was NaN or infinite; token means nothing
  bool has_failed = false;  // the rank could not run this sequence
};

// All ranks have completed a step.  Results of another epoch, of an unknown step or seen before change nothing.
struct StepCompleted {
  Epoch epoch = 0;
  StepId step = 0;
  std::vector<SampledToken> sampled;  // one per planned work that samples, in plan order
};

// The group of this epoch is gone: a rank died, hung or diverged.  Everything in flight is void, every cached block
// too.
struct WorkerLost {
  Epoch epoch = 0;
};

// A group stands ready, empty, under a new epoch.
struct GroupFormed {
  Epoch epoch = 0;
  int32_t num_dp_groups = 1;
  int32_t blocks_per_dp_group = 0;
};

// Time passes.  Needed when the core asked for it (Scheduler::wake_time).
struct Tick {};

struct PolicyChanged {
  Policy policy;  // may add tenants, never remove one
};

// Admit nothing new from now on.
struct DrainStarted {};

using Event = std::variant<Arrival, Cancel, StepCompleted, WorkerLost, GroupFormed, Tick, PolicyChanged, DrainStarted>;

// ---- outputs ----

// One token of a request's output, numbered from 0 with resumed tokens counted.  Each number is emitted at most once.
struct Token {
  RequestId id = 0;
  int32_t index = 0;
  TokenId token = 0;
};

enum class FinishReason : uint8_t {
  kStop,         // a stop token, or Cancel::kStopString
  kLength,       // max_tokens or max_model_len
  kCancelled,    // Cancel::kClient
  kDeadline,     // expired while waiting or running, or could no longer be met
  kNotFinite,    // the model's numbers broke; retriable
  kFailed,       // a rank refused the sequence, or the group that formed is too small for it
  kQuarantined,  // in flight at too many worker losses
};

// Where a request's time went.  The parts add up to finished - arrived.
struct WaitSplit {
  TimeUs queued_for_share_us = 0;    // others' turn (fair share, class)
  TimeUs queued_for_blocks_us = 0;   // first in line, no room in the cache
  TimeUs queued_for_slots_us = 0;    // first in line, max_num_seqs or token budget
  TimeUs queued_for_workers_us = 0;  // no group stands
  TimeUs prefill_us = 0;
  TimeUs decode_us = 0;
  TimeUs preempted_us = 0;   // waiting again, and recomputing what was there before
  TimeUs recovering_us = 0;  // the same after a worker loss
};

// The one terminal of an admitted request.
struct Finished {
  RequestId id = 0;
  FinishReason reason = FinishReason::kStop;
  int32_t num_prompt_tokens = 0;
  int32_t num_cached_tokens = 0;    // of the prompt, found in the prefix cache at first admission
  int32_t num_output_tokens = 0;    // resumed ones included
  int64_t num_computed_tokens = 0;  // rows run, recomputation included
  int32_t num_preemptions = 0;
  int32_t num_worker_losses = 0;
  WaitSplit wait;
};

enum class RefusalReason : uint8_t {
  kInvalid,          // unknown tenant, empty prompt, repeated id, max_tokens out of range: a bug of the shell
  kTooLong,          // prompt + max_tokens over max_model_len: needed, limit in tokens
  kNeverFits,        // over the whole cache of a group: needed, limit in blocks
  kQueueFull,        // all tenants' bound: needed, limit in requests or tokens
  kTenantQueueFull,  // this tenant's bound
  kDeadline,         // expired, or cannot be met by the cost model: needed, limit in microseconds
  kDraining,
};

// The one answer to a request that was not admitted to the queue.
struct Refused {
  RequestId id = 0;
  RefusalReason reason = RefusalReason::kInvalid;
  TimeUs retry_after_us = 0;  // 0: retrying will not help
  int64_t needed = 0;
  int64_t limit = 0;
};

using Output = std::variant<Token, Finished, Refused>;

}  // namespace weir::scheduler
