#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "scheduler/core/types.h"

// Everything about scheduling that an operator may choose, as values.  Handed to the core and replaced whole by an
// event; nothing in it changes what a step is.

namespace weir::scheduler {

// Fixed for the life of a scheduler: sizes that workers and buffers were made for.
struct Limits {
  int32_t block_size = 64;                // tokens
  int32_t max_num_seqs = 256;             // running at once, per data-parallel group (its slots)
  int32_t max_num_batched_tokens = 2048;  // of one step, per data-parallel group; at least max_num_seqs
  int64_t max_model_len = 131072;         // tokens of one sequence, prompt and output
  int32_t max_steps_in_flight = 2;        // planned and not completed; 2 = the next is planned while one runs
  int32_t max_num_waiting = 100000;       // requests, all tenants
  int64_t max_waiting_tokens = 1 << 30;   // prompt tokens, all tenants
};

// What a step of the workers is expected to take: for deadlines and for waiting-time estimates, never for correctness.
struct StepCost {
  double fixed_us = 2000;
  double us_per_prompt_token = 50;
  double us_per_generated_token = 100;
  double us_per_context_token = 0.01;  // per cached token that a row attends to
};

struct TenantPolicy {
  TenantId parent = -1;             // -1: a root.  A parent's index is smaller than its children's
  double weight = 1.0;              // share among siblings
  int32_t max_num_waiting = 10000;  // requests of this tenant
  int64_t kv_floor_blocks = 0;      // blocks it can always get back, per data-parallel group (not yet enforced)
};

struct Policy {
  std::vector<TenantPolicy> tenants;  // by TenantId; an arrival of an unknown tenant is refused

  // What service costs a tenant.  Charged for tokens computed; cache hits are free.
  double cost_per_prompt_token = 1.0;
  double cost_per_generated_token = 2.0;
  double cost_per_context_token = 0.0;

  // Inside a tenant the highest class goes first, but each lower class gets at least this part of the tenant's service
  // while it waits.
  std::array<double, kNumPriorityClasses> min_class_share = {0.0, 0.10, 0.05};

  // Prompt tokens of one step while sequences are decoding: bounds the time between two tokens of a stream.
  // Decoding rows always come first (the decode floor); a step without decoding rows may fill max_num_batched_tokens.
  int32_t max_prompt_tokens_while_decoding = 1024;

  int32_t max_preemptions = 3;    // of one request; after that it is pinned
  int32_t max_worker_losses = 2;  // a request in flight at this many losses is quarantined

  StepCost step_cost;
};

// What is wrong with a policy, in words for the operator who wrote it; empty if nothing is.  The core takes only sound
// policies: whoever reads one from outside asks here first.
std::string FindPolicyError(const Policy& policy);

}  // namespace weir::scheduler
