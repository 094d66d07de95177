#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "scheduler/core/events.h"
#include "scheduler/core/types.h"

// What reaches the event loop, and what it says to gateways.  Plain values: streams translate at the edge, so that the
// loop and all it owns know no protobuf.

namespace weir::worker::v1 {
class RunRequest;
class SamplingParams;
}  // namespace weir::worker::v1

namespace weir::scheduler {

using GatewayId = uint64_t;  // one gateway's stream; never reused

// ---- to a gateway ----

struct TokenLogprobs {
  std::optional<float> logprob;
  std::vector<std::pair<TokenId, float>> top;  // most likely first
};

struct TokenOutput {
  uint64_t number = 0;  // the gateway's number of the request
  int32_t index = 0;
  TokenId token = 0;
  TokenLogprobs logprobs;
};

// Not admitted, for a reason that the core does not know.
struct NotTaken {
  enum class Reason : uint8_t { kInvalid, kQueueFull, kTenantQueueFull, kNoWorkers } reason = Reason::kInvalid;
  TimeUs retry_after_us = 0;  // 0: retrying will not help
  int64_t needed = 0;
  int64_t limit = 0;
};

struct EndOutput {
  uint64_t number = 0;
  std::variant<Finished, Refused, NotTaken> how;
  std::string error;  // for people
};

struct GatewayOutput {
  std::vector<TokenOutput> tokens;
  std::vector<EndOutput> ends;
  std::vector<uint64_t> admitted;
  bool empty() const { return tokens.empty() && ends.empty() && admitted.empty(); }
};

// A gateway's stream as the loop sees it.  Neither call blocks.
class GatewaySink {
 public:
  virtual ~GatewaySink() = default;
  virtual void Send(GatewayOutput output) = 0;
  // Ends the stream: the gateway takes its requests elsewhere.
  virtual void Close(const std::string& reason) = 0;
};

// ---- from gateways ----

struct GatewayJoined {
  GatewayId gateway = 0;
  std::string name;
  std::shared_ptr<GatewaySink> sink;
};
struct GatewayGone {
  GatewayId gateway = 0;
};

// A request whose fields have been checked; its block keys are made already.
struct Submission {
  GatewayId gateway = 0;
  uint64_t number = 0;
  std::string name;
  uint64_t noise_name = 0;  // with the seed
  std::vector<std::string> tenant_path;
  std::vector<double> tenant_weights;
  PriorityClass priority = PriorityClass::kStandard;
  TimeUs deadline = kNever;  // by the loop's clock
  std::vector<TokenId> prompt;
  std::vector<TokenId> resumed;
  std::vector<TokenId> stop_tokens;
  std::vector<BlockKey> block_keys;
  int32_t max_tokens = 0;
  int32_t min_tokens = 0;
  uint64_t seed = 0;
  std::shared_ptr<const worker::v1::SamplingParams> sampling;
  bool wants_logprobs = false;
};

// A request that was found wanting before the loop saw it.
struct Rejection {
  GatewayId gateway = 0;
  uint64_t number = 0;
  NotTaken why;
  std::string error;
};

struct CancelOrder {
  GatewayId gateway = 0;
  uint64_t number = 0;
  bool is_stop = false;
};

// ---- from ranks ----

// What a rank says of itself; see the message WorkerHello.
struct RankHello {
  std::string build;
  uint64_t manifest_hash = 0;
  int32_t rank = 0;
  int32_t tp = 1;
  int32_t dp = 1;
  int64_t num_blocks = 0;
  int32_t block_size = 0;
  int32_t max_num_seqs = 0;
  int32_t max_num_batched_tokens = 0;
  int64_t max_model_len = 0;
  int32_t vocab_size = 0;
  std::vector<TokenId> eos_token_ids;
  std::string device;
  std::string communicator_address;
  uint64_t pid = 0;
};
struct RankLoading {
  uint64_t bytes_done = 0;
  uint64_t bytes_total = 0;
};
struct RankFormed {
  Epoch epoch = 0;
};
struct SequenceOutcome {
  SlotId slot = 0;
  int32_t dp_group = 0;
  bool has_sampled = false;
  TokenId token = -1;  // -1: none could be chosen
  bool is_finite = true;
  TokenLogprobs logprobs;
  std::string error;
};
struct RankResult {
  Epoch epoch = 0;
  StepId step = 0;
  uint64_t plan_hash = 0;
  std::vector<SequenceOutcome> sequences;
  uint64_t num_expert_rows = 0;
  int64_t total_us = 0;
  int64_t communication_us = 0;
  int64_t sampling_us = 0;
};
struct RankFailed {
  Epoch epoch = 0;
  StepId step = 0;  // 0: forming the group
  std::string reason;
};
// The stream is over; nothing follows.
struct RankGone {
  std::string reason;
  bool has_refused = false;  // the hellos do not fit: trying again at once is no use
};

struct RankEvent {
  int32_t rank = 0;     // place in the list of addresses
  uint64_t stream = 0;  // tells a stream's events from those of its predecessor
  std::variant<RankLoading, RankHello, RankFormed, RankResult, RankFailed, RankGone> what;
};

// ---- from the process ----

// Admit nothing more; what has not ended when the time is over is handed back.
struct DrainOrder {
  TimeUs patience_us = 0;
};

using Message = std::variant<GatewayJoined, GatewayGone, Submission, Rejection, CancelOrder, RankEvent, DrainOrder>;

}  // namespace weir::scheduler
