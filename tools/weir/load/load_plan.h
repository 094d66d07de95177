#pragma once

#include <cstdint>
#include <vector>

#include "tools/sim/request_trace.h"

// What a load test sends and when.  Pure: the same options give the same plan.

namespace weir::tools {

struct PlannedRequest {
  double at_s = 0;  // since the start; with a closed loop 0: as soon as a place is free
  int32_t num_prompt_tokens = 0;
  int32_t num_output_tokens = 0;
  std::vector<uint64_t> hash_ids;  // of blocks of hash_block_tokens prompt tokens; equal ids, equal tokens
  double hash_block_tokens = sim::kHashBlockTokens;
};

// `count` requests whose arrivals are a Poisson process of `rate_per_s`; at once when the rate is 0.
std::vector<PlannedRequest> PlanPoisson(int32_t count, double rate_per_s, int32_t num_prompt_tokens,
                                        int32_t num_output_tokens, uint64_t seed);

// Requests at the times of a recorded trace, their lengths bounded so that they fit `max_model_len`.  `scale`: what the
// trace's lengths were multiplied by; prefixes shrink and grow with them.
std::vector<PlannedRequest> PlanTrace(const sim::RequestTrace& trace, double scale, int64_t max_model_len);
// How many requests of the trace PlanTrace shortens.
int64_t CountShortened(const sim::RequestTrace& trace, int64_t max_model_len);

// The token ids of a request's prompt: random below vocab_size and without `avoided`, from the seed and the request's
// index, or from its hash ids where it has any.
std::vector<uint32_t> PromptIds(const PlannedRequest& request, uint64_t seed, uint64_t index, uint32_t vocab_size,
                                const std::vector<uint32_t>& avoided);

}  // namespace weir::tools
