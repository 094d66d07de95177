#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "gateway/clock.h"
#include "gateway/identity/identity.h"
#include "gateway/request/prepared_request.h"

// What passes between the gateway and the schedulers of replicas, as plain values (proto/weir/scheduler/v1).

namespace weir::gateway {

// ---- what is asked ----

// A request, ready to run on any replica.  Does not change while it lives.
struct Submission {
  std::string request_id;
  std::vector<std::string> tenant_path;
  std::vector<double> tenant_weights;
  Priority priority = Priority::kStandard;
  std::optional<TimeUs> deadline;
  std::vector<TokenId> prompt;
  int32_t max_tokens = 0;
  int32_t min_tokens = 0;
  std::vector<TokenId> stop_tokens;
  SamplingSettings sampling;
  bool wants_logprobs = false;
  uint32_t num_top_logprobs = 0;
  uint64_t seed = 0;
  std::array<uint8_t, 16> cache_namespace_key{};
  std::string traceparent;

  // The token ends the output when it is number `index` of it, from 0.
  bool IsStop(TokenId token, size_t index) const {
    if (static_cast<int64_t>(index) + 1 < min_tokens) return false;
    for (const TokenId stop : stop_tokens) {
      if (stop == token) return true;
    }
    return false;
  }
};

// ---- what comes back ----

struct OutputToken {
  uint32_t index = 0;  // in the output, from 0
  TokenId token = 0;
  std::optional<float> logprob;
  std::vector<std::pair<TokenId, float>> top;  // most likely first
};

enum class EndReason {
  kStop,
  kLength,
  kCancelled,
  kDeadline,
  kNotFinite,
  kFailed,
  kQuarantined,
  kRefused,      // never admitted; `refusal` says why
  kReplicaLost,  // no replica took it over
};

struct Refusal {
  enum class Reason {
    kInvalid,
    kTooLong,
    kNeverFits,
    kQueueFull,
    kTenantQueueFull,
    kDeadline,
    kDraining,
    kNoWorkers,
  };
  Reason reason = Reason::kInvalid;
  int64_t retry_after_ms = 0;  // 0 = a retry does not help
  int64_t needed = 0;          // in the reason's unit
  int64_t limit = 0;
};

// Where the time went, in microseconds.
struct WaitSplit {
  int64_t queued_for_share_us = 0;
  int64_t queued_for_blocks_us = 0;
  int64_t queued_for_slots_us = 0;
  int64_t queued_for_workers_us = 0;
  int64_t prefill_us = 0;
  int64_t decode_us = 0;
  int64_t preempted_us = 0;
  int64_t recovering_us = 0;
  int64_t network_us = 0;  // on the way, and between replicas

  // In the order above.
  static constexpr std::array<int64_t WaitSplit::*, 9> kParts();
  int64_t sum() const {
    int64_t sum = 0;
    for (const auto part : kParts()) sum += this->*part;
    return sum;
  }
  WaitSplit& operator+=(const WaitSplit& other) {
    for (const auto part : kParts()) this->*part += other.*part;
    return *this;
  }
};

constexpr std::array<int64_t WaitSplit::*, 9> WaitSplit::kParts() {
  return {&WaitSplit::queued_for_share_us,   &WaitSplit::queued_for_blocks_us, &WaitSplit::queued_for_slots_us,
          &WaitSplit::queued_for_workers_us, &WaitSplit::prefill_us,           &WaitSplit::decode_us,
          &WaitSplit::preempted_us,          &WaitSplit::recovering_us,        &WaitSplit::network_us};
}

struct Ending {
  EndReason reason = EndReason::kFailed;
  std::optional<Refusal> refusal;
  uint32_t num_cached_tokens = 0;
  WaitSplit wait;  // from a replica: since its Submit; from ReplicaSet: since the first one
  uint32_t num_preemptions = 0;
  uint32_t num_worker_losses = 0;
  std::string error;  // for people
};

// How a replica stands.
struct ReplicaView {
  std::string build;
  int64_t max_model_len = 0;  // 0 while it has had no workers
  int32_t vocab_size = 0;
  bool is_ready = false;
  bool is_draining = false;
  int64_t num_requests = 0;  // waiting and running, of all gateways

  bool is_known() const { return vocab_size > 0; }
};

// What one message of a scheduler brings, of several requests.
struct ReplicaOutput {
  struct Token {
    uint64_t attempt = 0;
    OutputToken token;
  };
  struct End {
    uint64_t attempt = 0;
    Ending ending;
  };
  std::vector<uint64_t> admitted;
  std::vector<Token> tokens;
  std::vector<End> ends;
};

struct ReplicaJoined {
  ReplicaView view;
};
struct ReplicaPolled {
  ReplicaView view;
};
// The last event of a stream.
struct ReplicaGone {
  std::string reason;
};

struct ReplicaEvent {
  int32_t replica = 0;
  uint64_t stream = 0;  // of ReplicaPort::Open
  std::variant<ReplicaJoined, ReplicaPolled, ReplicaOutput, ReplicaGone> what;
};

// ---- who carries it ----

// Streams to the schedulers.  Thread-safe; never calls back from inside a call.
class ReplicaPort {
 public:
  virtual ~ReplicaPort() = default;
  // Begins a stream, of which there is at most one a replica; what it brings becomes ReplicaEvents, the last of them
  // ReplicaGone.
  virtual uint64_t Open(int32_t replica) = 0;
  // ReplicaGone follows.
  virtual void Close(int32_t replica) = 0;
  // ReplicaPolled follows, or nothing.
  virtual void Poll(int32_t replica) = 0;
  // `resumed`: output that is there already.  False: too much waits to be sent.
  virtual bool Submit(int32_t replica, uint64_t attempt, const Submission& submission,
                      const std::vector<TokenId>& resumed, std::optional<int64_t> deadline_ms) = 0;
  virtual void Cancel(int32_t replica, uint64_t attempt, bool is_stop) = 0;
};

// Whoever waits for a request's output.  Called by one thread at a time.
class OutputSink {
 public:
  struct Output {
    bool is_admitted = false;  // for the first time
    std::vector<OutputToken> tokens;
    std::optional<Ending> end;  // after it nothing comes
  };
  virtual ~OutputSink() = default;
  virtual void OnOutput(TimeUs now, Output output) = 0;
};

}  // namespace weir::gateway
