#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tools/weir/client/inference_client.h"
#include "tools/weir/load/load_plan.h"
#include "tools/weir/load/load_report.h"

// Sends a plan to a gateway and measures.  Every request is one Generate of token ids with exactly its number of output
// tokens (end-of-sequence tokens are ignored), greedy.

namespace weir::tools {

struct LoadRunOptions {
  std::string model;
  uint32_t vocab_size = 0;
  std::vector<uint32_t> avoided_ids;  // never in a prompt
  uint64_t seed = 1;
  int32_t concurrency =
      0;  // closed loop: so many at once, times of the plan do not count; 0: open loop, each at its time
  double timeout_s = 600;                   // of one request
  const std::atomic<bool>* stop = nullptr;  // set at any time: nothing more is sent, what runs is cancelled
};

struct LoadProgress {
  int64_t num_ended = 0, num_running = 0, num_failed = 0, num_output_tokens = 0;
  double elapsed_s = 0;
};

// Returns when every request that was sent has ended; without a stop that is the whole plan.  `progress` is called from
// the calling thread about ten times a second.
std::vector<RequestRecord> RunLoad(const InferenceClient& client, const std::vector<PlannedRequest>& plan,
                                   const LoadRunOptions& options,
                                   const std::function<void(const LoadProgress&)>& progress);

}  // namespace weir::tools
