#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "scheduler/core/types.h"
#include "scheduler/service/messages.h"

// What the core does not hold of a live request: whose it is, and how its tokens are chosen.

namespace weir::scheduler {

struct LiveRequest {
  RequestId id = 0;
  GatewayId gateway = 0;  // 0: the scheduler's own
  uint64_t number = 0;
  std::string name;
  TenantId tenant = 0;
  uint64_t noise_name = 0;
  uint64_t seed = 0;
  std::shared_ptr<const worker::v1::SamplingParams> sampling;
  bool wants_logprobs = false;
  int32_t num_prompt_tokens = 0;
  int32_t num_setup_tokens = 0;  // ids that its slot holds from its last setup
  std::string error;             // what a rank said of it
};

// The 64-bit name of a request's noise: FNV-1a over its lasting name.  Every replica and every build must compute the
// same, or a request that moves would draw other tokens.
uint64_t NoiseName(std::string_view request_name);

class RequestTable {
 public:
  // Requires: no live request of this gateway has the number.
  LiveRequest& Add(LiveRequest request);
  LiveRequest* Find(RequestId id);                        // nullptr: not live
  LiveRequest* Find(GatewayId gateway, uint64_t number);  // nullptr: not live
  void Remove(RequestId id);
  std::vector<RequestId> Of(GatewayId gateway) const;
  // All ids, ascending.
  std::vector<RequestId> All() const;
  size_t size() const { return by_id_.size(); }

 private:
  absl::flat_hash_map<RequestId, LiveRequest> by_id_;
  std::map<std::pair<GatewayId, uint64_t>, RequestId> by_number_;
};

}  // namespace weir::scheduler
