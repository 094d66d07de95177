#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "scheduler/core/policy.h"
#include "scheduler/core/step_plan.h"
#include "scheduler/service/messages.h"
#include "scheduler/service/result_gather.h"
#include "scheduler/service/step_pace.h"

// The ranks of a replica as one group: who is connected, whether they fit together, the epochs of the group, and the
// steps that are with it.  Belongs to the event loop; time comes with every call.
//
//   apart ──all ranks have said hello and fit──▶ forming ──all have formed──▶ standing
//     ▲────────a rank fails, dies, or is silent beyond its deadline────────────┘
//
// Liveness is judged by progress: an open connection counts for nothing.  A rank that does not take part in forming in
// time is hung: its stream is ended and, where that is allowed, its process killed for its supervisor to start anew.
// Ranks that live keep their weights and join the next epoch.

namespace weir::scheduler {

// What forms a group; see the message FormGroup.
struct GroupForm {
  Epoch epoch = 0;
  std::vector<std::string> addresses;
  std::string token;
  TimeUs collective_deadline_us = 0;
  TimeUs connect_deadline_us = 0;
};

// The way to the ranks.  No call blocks; what comes of it arrives as RankEvents.
class RankPort {
 public:
  virtual ~RankPort() = default;
  // Begins a new stream to the rank and returns its number.
  virtual uint64_t Open(int32_t rank) = 0;
  // Ends the rank's stream, if it has one.
  virtual void Close(int32_t rank) = 0;
  virtual void FormGroup(int32_t rank, const GroupForm& form) = 0;
  virtual void Send(int32_t rank, std::shared_ptr<const worker::v1::RunRequest> plan) = 0;
  // Ends a process on this host.
  virtual void Kill(uint64_t pid) = 0;
};

struct GroupOptions {
  std::vector<std::string> addresses;  // of the ranks, in rank order
  TimeUs step_deadline_us = 2'000'000;
  TimeUs unknown_step_deadline_us = 10'000'000;
  TimeUs collective_deadline_us = 1'800'000;
  TimeUs connect_deadline_us = 1'500'000;
  // Of a rank whose stream is open and that has not said hello: one that loads says how far it is ten times a second.
  TimeUs silence_deadline_us = 10'000'000;
  TimeUs min_retry_us = 100'000;
  TimeUs max_retry_us = 1'000'000;
  bool kills_hung_local_ranks = false;
};

// What the ranks agree on.
struct GroupShape {
  Limits limits;  // sizes only; the rest is the operator's
  uint64_t manifest_hash = 0;
  int32_t vocab_size = 0;
  std::vector<TokenId> eos_token_ids;
  int32_t tp = 1;
  int32_t dp = 1;
  int32_t blocks_per_dp_group = 0;
};

class WorkerGroup {
 public:
  struct Formed {
    Epoch epoch = 0;
    GroupShape shape;
    TimeUs took_us = 0;  // since the group before it was lost; 0 for the first
  };
  struct Lost {
    Epoch epoch = 0;
    std::string reason;
  };
  using News = std::variant<Formed, Lost, CompletedStep>;

  // The port must outlive the group.
  WorkerGroup(GroupOptions options, RankPort* port);

  void On(TimeUs now, RankEvent event, std::vector<News>& news);
  // Deadlines and retries.  Needed at wake_time().
  void OnTime(TimeUs now, std::vector<News>& news);
  TimeUs wake_time() const;

  // Requires: the plan's epoch stands.
  void Send(TimeUs now, const StepPlan& plan, const std::shared_ptr<const worker::v1::RunRequest>& message);

  // Once known, ranks that do not fit it are refused: requests have been admitted by these sizes.
  void RequireShape(const GroupShape& shape) { required_ = shape; }

  bool stands() const { return state_ == State::kStanding; }
  Epoch epoch() const { return epoch_; }
  int32_t num_ranks() const { return static_cast<int32_t>(ranks_.size()); }
  bool is_up(int32_t rank) const { return ranks_[rank].hello.has_value(); }
  // Why no group stands, for people; empty when one does.
  std::string WhyApart() const;

 private:
  enum class State : uint8_t { kApart, kForming, kStanding };
  struct Rank {
    uint64_t stream = 0;  // 0: none
    TimeUs open_at = 0;   // when there is none
    TimeUs retry_us = 0;
    TimeUs heard_at = 0;  // or opened at
    std::optional<RankHello> hello;
    RankLoading loading;
    bool has_answered = false;  // to the forming
    bool has_formed = false;
    std::string last_words;  // why its last stream ended
  };

  void Take(TimeUs now, int32_t rank, const RankLoading& loading, std::vector<News>& news);
  void Take(TimeUs now, int32_t rank, const RankHello& hello, std::vector<News>& news);
  void Take(TimeUs now, int32_t rank, const RankFormed& formed, std::vector<News>& news);
  void Take(TimeUs now, int32_t rank, RankResult& result, std::vector<News>& news);
  void Take(TimeUs now, int32_t rank, const RankFailed& failed, std::vector<News>& news);
  void Take(TimeUs now, int32_t rank, const RankGone& gone, std::vector<News>& news);

  void TryForm(TimeUs now);
  std::string FindMismatch() const;
  std::string FindMismatch(int32_t rank) const;
  GroupShape Shape() const;
  void EndForming(TimeUs now);
  void Stand(TimeUs now, std::vector<News>& news);
  void Lose(TimeUs now, const std::string& reason, std::vector<News>& news);
  // Ends the stream of a rank that misbehaves or is silent.
  void Drop(TimeUs now, int32_t rank, const std::string& reason, bool is_hung);
  // The rank's stream is over, for this reason; the next begins after its retry time.
  void OpenLater(TimeUs now, Rank& rank, const std::string& reason);
  TimeUs HelloDeadline(const Rank& rank) const;  // kNever without a stream, and after the hello
  TimeUs StepDeadline() const;

  const GroupOptions options_;
  RankPort* const port_;
  std::vector<Rank> ranks_;
  State state_ = State::kApart;
  Epoch epoch_ = 0;
  TimeUs form_not_before_ = 0;
  TimeUs form_retry_us_ = 0;
  TimeUs form_deadline_ = kNever;
  std::optional<TimeUs> lost_at_;
  std::string mismatch_;  // of the ranks that are connected
  std::optional<GroupShape> required_;
  StepPace pace_;
  std::optional<ResultGather> steps_;  // of the epoch that stands
};

}  // namespace weir::scheduler
