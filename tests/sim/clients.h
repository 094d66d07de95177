#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "scheduler/core/events.h"
#include "tests/sim/request.h"
#include "tests/sim/violation.h"
#include "tests/sim/workers.h"

// The clients of all requests: they know what the model must answer and count every token and every terminal.

namespace weir::sim {

class Clients {
 public:
  Clients(const scheduler::Limits& limits, Report& report) : limits_(limits), report_(report) {}

  // What is about to happen; what must follow is checked by AfterApply.
  void BeforeArrival(Request& request, const scheduler::Policy& policy, const Workers& workers, bool is_draining,
                     scheduler::TimeUs now);
  void BeforeCancel(const scheduler::Cancel& cancel);
  void BeforeStepCompleted(const FlyingStep& step);
  void BeforeWorkerLost(const scheduler::Policy& policy);
  void BeforeGroupFormed(const scheduler::GroupFormed& formed) { blocks_per_dp_group_ = formed.blocks_per_dp_group; }

  void Deliver(const scheduler::Output& output, const scheduler::Policy& policy, scheduler::TimeUs now);
  void AfterApply(scheduler::TimeUs now);
  void BeforePlan() { is_planning_ = true; }
  // Deadlines have been acted upon.
  void AfterPlan(scheduler::TimeUs now, scheduler::TimeUs wake_time);

  Request& Add(std::unique_ptr<Request> request);  // ids are 1, 2, 3, ...
  Request* Find(scheduler::RequestId id) const {
    return id == 0 || id > requests_.size() ? nullptr : requests_[id - 1].get();
  }
  std::span<Request* const> live() const { return live_; }
  size_t num_requests() const { return requests_.size(); }
  void set_on_end(std::function<void(Request&)> on_end) { on_end_ = std::move(on_end); }

  int64_t num_admitted() const { return num_admitted_; }
  int64_t num_finished() const { return num_finished_; }
  int64_t num_refused() const { return num_refused_; }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_preempted_and_ended() const { return num_preempted_and_ended_; }  // in one and the same plan

 private:
  struct Due {  // a sampled row whose outcome must show at once
    Request* request;
    int32_t num_known;  // expected afterwards
    bool is_broken;
  };

  void CountWaiting(scheduler::TenantId tenant, scheduler::TimeUs unless_expired_at);
  uint32_t FullQueues(const scheduler::Arrival& arrival) const;
  void DeliverToken(const scheduler::Token& token);
  void DeliverFinished(const scheduler::Finished& finished, const scheduler::Policy& policy, scheduler::TimeUs now);
  void DeliverRefused(const scheduler::Refused& refused, scheduler::TimeUs now);
  void CheckReason(const scheduler::Finished& finished, const Request& request, const scheduler::Policy& policy,
                   scheduler::TimeUs now);
  void CheckCounts(const scheduler::Finished& finished, const Request& request, scheduler::TimeUs now);
  void CheckWaste(const scheduler::Finished& finished, const Request& request);
  const char* FindWrongNumber(const scheduler::Refused& refused, scheduler::TimeUs now) const;
  void CheckDue(scheduler::TimeUs now);
  bool EndsByItself(const Request& request) const;
  bool StopsAtLastToken(const Request& request) const;

  int64_t num_blocks_for(int64_t num_tokens) const {
    return (num_tokens + limits_.block_size - 1) / limits_.block_size;
  }

  const scheduler::Limits limits_;
  Report& report_;
  int32_t blocks_per_dp_group_ = 0;  // of the group that formed last
  std::function<void(Request&)> on_end_;
  std::vector<std::unique_ptr<Request>> requests_;  // by id - 1
  std::vector<Request*> live_;
  int64_t num_admitted_ = 0;
  int64_t num_finished_ = 0;
  int64_t num_refused_ = 0;
  int64_t num_tokens_ = 0;
  int64_t num_preempted_and_ended_ = 0;
  bool is_planning_ = false;

  // ---- of the event being applied ----
  Request* arriving_ = nullptr;
  bool was_answered_ = false;
  uint32_t allowed_refusals_ = 0;  // bits of RefusalReason
  uint32_t required_refusals_ = 0;
  int64_t num_waiting_ = 0;
  int64_t num_waiting_of_tenant_ = 0;
  int64_t waiting_tokens_ = 0;
  int32_t tenant_limit_ = 0;
  std::vector<Request*> must_end_;
  std::vector<Due> due_;
  std::vector<Request*> told_;  // got a token
};

}  // namespace weir::sim
