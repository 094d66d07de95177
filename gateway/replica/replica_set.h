#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "gateway/replica/messages.h"
#include "gateway/replica/prefix_affinity.h"

// The replicas of one model, and the requests that run on them.
//
// A request goes to the ready replica with the least to do, or to the one that likely holds the beginning of its prompt
// in its cache, unless that has clearly more to do.  When its replica is lost, it goes to another one, or to
// the same one when that is back, with the tokens it has: sampling is a function of seed and position, so the
// client sees a pause and then the tokens it would have seen.  Losses and waiting are bounded.
//
// Thread-safe.  Reads no clock; sinks are called without its lock, so they may call it.

namespace weir::gateway {

class ReplicaSet {
 public:
  struct Options {
    std::vector<std::string> addresses;  // for logs
    int32_t vocab_size = 0;              // a replica with another one is of another model and gets nothing
    TimeUs replica_timeout_us = 5'000'000;
    TimeUs recovery_timeout_us = 30'000'000;
    int32_t max_replays = 8;
    TimeUs poll_interval_us = 250'000;
  };
  // `port` must outlive the set; its events go to On.
  ReplicaSet(Options options, ReplicaPort* port);

  enum class NotTaken { kNoReplica, kDraining };
  struct Taken {
    uint64_t ticket = 0;  // 0: not taken
    NotTaken why = NotTaken::kNoReplica;
  };
  // The sink hears of the request until its end, unless no replica can take it at this moment.
  Taken Submit(TimeUs now, std::shared_ptr<const Submission> submission, std::shared_ptr<OutputSink> sink);
  // The end follows, soon or at once, on this thread too.  `is_stop`: a stop text appeared; it counts as a stop.
  void Cancel(TimeUs now, uint64_t ticket, bool is_stop);

  void On(TimeUs now, ReplicaEvent event);
  // Opens streams, asks replicas how they stand, and ends what has waited too long.  Every 20 ms or so.
  void OnTime(TimeUs now);

  struct View {
    int32_t num_ready = 0;
    int32_t num_joined = 0;
    int64_t num_requests = 0;   // of this gateway
    int64_t num_parked = 0;     // of them, waiting for a replica
    int64_t num_replays = 0;    // since the beginning
    int64_t num_to_prefix = 0;  // since the beginning: sent to where their prompt's beginning likely is
  };
  View view() const;
  // The shortest context of all joined replicas; 0 while none is known.
  int64_t max_model_len() const;

 private:
  struct Replica {
    enum class State { kApart, kOpening, kJoined } state = State::kApart;
    uint64_t stream = 0;
    ReplicaView view;
    bool is_closing = false;
    bool is_other_model = false;
    TimeUs retry_at = 0;
    TimeUs backoff_us = 0;
    TimeUs heard_at = 0;
    TimeUs polled_at = 0;
    int64_t num_requests = 0;    // of this gateway
    int64_t num_since_poll = 0;  // submitted since `view` was made
    std::string last_reason;     // of its last loss: said once
  };

  struct Request {
    uint64_t ticket = 0;
    std::shared_ptr<const Submission> submission;
    std::shared_ptr<OutputSink> sink;
    std::vector<uint64_t> prefix_hashes;  // empty when there is nothing to choose
    int32_t replica = -1;                 // -1: parked
    uint64_t attempt = 0;
    std::vector<TokenId> output;
    std::vector<bool> refused_by;  // in a row
    WaitSplit wait;                // of attempts that are over
    TimeUs attempt_began = 0;
    TimeUs first_token_at = 0;  // of this attempt; 0 = none yet
    TimeUs last_token_at = 0;
    TimeUs parked_at = 0;
    TimeUs not_before = 0;
    int32_t num_replays = 0;
    bool was_admitted = false;
    bool is_cancelled = false;
    bool is_stop = false;
  };

  struct Delivery {
    std::shared_ptr<OutputSink> sink;
    OutputSink::Output output;
  };
  // In order; what one message brings for one request is one delivery.
  struct Deliveries {
    std::vector<Delivery> list;
    std::unordered_map<uint64_t, size_t> of_ticket;
  };

  void Take(TimeUs now, int32_t index, const ReplicaJoined& joined, Deliveries& deliveries);
  void Take(TimeUs now, int32_t index, const ReplicaPolled& polled, Deliveries& deliveries);
  void Take(TimeUs now, int32_t index, ReplicaOutput& output, Deliveries& deliveries);
  void Take(TimeUs now, int32_t index, const ReplicaGone& gone, Deliveries& deliveries);

  void TakeToken(TimeUs now, int32_t index, ReplicaOutput::Token& token, Deliveries& deliveries);
  void TakeEnd(TimeUs now, ReplicaOutput::End& end, Deliveries& deliveries);
  bool TakeElsewhere(TimeUs now, Request& request, const Refusal& refusal);
  void TakeView(int32_t index, const ReplicaView& view);
  void Lose(TimeUs now, Request& request, Deliveries& deliveries);

  int32_t Pick(const Request& request) const;
  int32_t LeastLoaded(const Request& request) const;
  bool CanTake(const Request& request, int32_t index) const;
  int64_t LoadOf(int32_t index) const;
  bool Send(TimeUs now, Request& request, int32_t index);
  void Leave(Request& request);
  void CloseAttempt(TimeUs now, Request& request, const WaitSplit& reported);
  void Park(TimeUs now, Request& request, TimeUs not_before);
  int64_t NumParked() const;
  void SendParked(TimeUs now, Deliveries& deliveries);
  void End(TimeUs now, Request& request, Ending ending, Deliveries& deliveries);

  void KeepStream(TimeUs now, int32_t index);
  Request* Find(uint64_t attempt);
  static OutputSink::Output& OutputFor(const Request& request, Deliveries& deliveries);
  static void Deliver(TimeUs now, Deliveries deliveries);

  const Options options_;
  ReplicaPort* const port_;

  mutable std::mutex mutex_;
  std::vector<Replica> replicas_;
  std::map<uint64_t, Request> requests_;             // by ticket
  std::unordered_map<uint64_t, uint64_t> attempts_;  // running attempt -> ticket
  uint64_t next_number_ = 1;
  int64_t num_replays_ = 0;
  int64_t num_to_prefix_ = 0;
  PrefixAffinity affinity_;
  std::minstd_rand jitter_;
};

}  // namespace weir::gateway
