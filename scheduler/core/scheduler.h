#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "scheduler/core/events.h"
#include "scheduler/core/policy.h"
#include "scheduler/core/step_plan.h"

// The decisions of one replica: who runs, with which blocks, who waits, who is preempted.  Events in, plans out.
//
// Pure: no clock, thread, socket, log or metric, no order that depends on hashing or addresses.  The same events give
// the same plans, to the byte, on every machine.  Belongs to one thread.
//
//   scheduler.Apply(now, event, outputs);          // for everything that happened
//   while (scheduler.Plan(now, plan, outputs)) {   // as long as a step may be planned
//     send(plan);                                  // ... and one day comes StepCompleted or WorkerLost
//   }
//
// After every call, for each data-parallel group: free blocks + owned blocks == total blocks.

namespace weir::scheduler {

// What the shell's metrics read after a step.  Counters only grow; gauges are of now.
struct Stats {
  // gauges
  int32_t num_waiting = 0;
  int32_t num_waiting_for_blocks = 0;  // of num_waiting: first in line, no room in the cache
  int32_t num_waiting_for_slots = 0;   // first in line, max_num_seqs or token budget
  int32_t num_preempted = 0;           // waiting again after a preemption
  int32_t num_recovering = 0;          // waiting again after a worker loss; the rest wait for their turn
  int32_t num_running = 0;
  int64_t num_waiting_tokens = 0;
  int64_t blocks_total = 0;
  int64_t blocks_free = 0;    // without content
  int64_t blocks_cached = 0;  // nobody's, holding a prefix; taken when free ones run out
  int64_t blocks_owned = 0;   // by running sequences
  int32_t steps_in_flight = 0;
  // counters
  int64_t steps_planned = 0;
  int64_t prompt_tokens_computed = 0;
  int64_t generated_tokens_computed = 0;
  int64_t tokens_emitted = 0;
  int64_t wasted_rows = 0;        // computed for a sequence that had ended
  int64_t recomputed_tokens = 0;  // after preemptions and losses
  int64_t preemptions = 0;
  int64_t prefix_cache_queries = 0;  // prompt tokens looked up
  int64_t prefix_cache_hits = 0;     // prompt tokens found
  int64_t prefix_cache_evictions = 0;
  int64_t requests_admitted = 0;  // to the queue; each arrival is either admitted or refused
  int64_t requests_refused = 0;
  int64_t requests_finished = 0;  // admitted ones, for whatever reason
  int64_t requests_quarantined = 0;
};

class Scheduler {
 public:
  // Limits that contradict each other (max_num_batched_tokens < max_num_seqs, block_size < 1) are a bug: CHECK.
  Scheduler(const Limits& limits, const Policy& policy);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Appends what the event causes to `outputs`.  `now` must not be less than in any call before.
  void Apply(TimeUs now, const Event& event, std::vector<Output>& outputs);

  // Plans the next step into `plan` (cleared first).  False, and an empty plan, when nothing can be planned now: no
  // group, as many steps in flight as allowed, or no work.  Deadlines that passed are acted upon first, into `outputs`.
  bool Plan(TimeUs now, StepPlan& plan, std::vector<Output>& outputs);

  // When a Tick is needed if nothing else happens: the earliest deadline; kNever if there is none.
  TimeUs wake_time() const;

  const Stats& stats() const;

  // ---- what the shell asks while it fills in a plan, and tests while they check ----

  // Known tokens of a live request: prompt, then output so far.  Empty for unknown ids.
  std::span<const TokenId> tokens(RequestId id) const;
  // Service charged to a tenant so far, in cost units; its subtree's for a parent.
  double service(TenantId tenant) const;
  // The virtual counter that orders tenants (service / weight, lifted on return).
  double virtual_counter(TenantId tenant) const;

  struct SequenceView {
    RequestId id = 0;
    TenantId tenant = 0;
    int32_t dp_group = -1;  // -1: waiting
    SlotId slot = -1;
    int32_t num_prompt_tokens = 0;
    int32_t num_tokens = 0;
    int32_t num_computed_tokens = 0;  // completed
    int32_t num_planned_tokens = 0;   // completed and in flight
    std::span<const BlockId> block_table;
  };
  // All live requests, waiting and running, in ascending id.  For checkers: costs in proportion to all of them.
  std::vector<SequenceView> Sequences() const;

  // Every block's owners, counted anew from the block tables, against the pool's own books; names the first difference,
  // or is empty.  For checkers: costs in proportion to the pool.
  std::string CheckBooks() const;

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace weir::scheduler
