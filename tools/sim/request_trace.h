#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/core/types.h"

// Recorded request traces, in the two shapes in which they are published:
//
//   Azure      CSV   TIMESTAMP,ContextTokens,GeneratedTokens          2023-11-16 18:15:46.6805900,374,44
//                    the later one with the distance from UTC         2024-05-10 00:00:00.009930+00:00,2162,5
//   Mooncake   JSONL {"timestamp": ms, "input_length": n, "output_length": m, "hash_ids": [...]}
//              one id for every 512 tokens of the prompt; equal ids stand for equal prefixes
//
// Neither names tenants: AssignTenants does.

namespace weir::sim {

inline constexpr int32_t kHashBlockTokens = 512;  // of one hash id

struct TraceRequest {
  scheduler::TimeUs arrival_us = 0;  // since the first
  int32_t num_prompt_tokens = 0;
  int32_t num_output_tokens = 0;
  std::vector<uint64_t> hash_ids;  // empty: nothing is known about prefixes
  scheduler::TenantId tenant = 0;
};

struct RequestTrace {
  std::vector<TraceRequest> requests;  // by arrival
  bool has_prefixes = false;
  int32_t num_shared_ids = 0;  // hash ids with which every prompt begins: a prefix that all tenants share
};

// Errors name the line and what is wrong with it.  Reads `limit` requests at most; 0: all.
absl::StatusOr<RequestTrace> ParseTrace(std::string_view text, int64_t limit = 0);
absl::StatusOr<RequestTrace> ReadTrace(const std::string& path, int64_t limit = 0);

// Gives each request to one of `tenants` by a Zipf law (s = 1.1), the first tenant the most.  A conversation stays with
// one tenant: requests whose first hash id outside the shared prefix is the same go together.
void AssignTenants(const std::vector<scheduler::TenantId>& tenants, uint64_t seed, RequestTrace& trace);

// Multiplies lengths by `scale` (at least one token stays) and the rate of arrivals by `speed`.
void Rescale(double scale, double speed, RequestTrace& trace);

// Lets one tenant send `factor` times as many requests, the copies spread over the gaps between its own.
void Amplify(scheduler::TenantId tenant, int32_t factor, uint64_t seed, RequestTrace& trace);

}  // namespace weir::sim
