#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "scheduler/core/scheduler.h"
#include "scheduler/service/inbox.h"
#include "scheduler/service/replica_board.h"
#include "scheduler/service/request_table.h"
#include "scheduler/service/scheduler_metrics.h"
#include "scheduler/service/step_cost_estimate.h"
#include "scheduler/service/tenant_table.h"
#include "scheduler/service/worker_group.h"

// The one thread that touches the scheduler core and owns the clock.  A turn of the loop:
//
//   takes everything that has happened  →  tells the core  →  plans while a step may be planned  →  sends
//
// and sleeps until something happens or the core, the group or the canary wants to be woken.  Whatever takes time
// (reading requests, naming their blocks, writing to streams) is done by others.

namespace weir::scheduler {

// Microseconds of a monotonic clock: the time in all events.
TimeUs NowUs();

struct EventLoopOptions {
  GroupOptions group;
  Policy policy;  // without tenants
  int32_t max_tenants = 10000;
  int32_t max_steps_in_flight = 2;
  int32_t max_num_waiting = 100000;
  int64_t max_waiting_tokens = int64_t{1} << 30;
  // A group that has nothing to do proves itself again this often, so that a hung rank is found before a request is.
  TimeUs canary_interval_us = 10'000'000;
};

class EventLoop {
 public:
  // All must outlive the loop.
  EventLoop(EventLoopOptions options, Inbox* inbox, RankPort* port, ReplicaBoard* board, SchedulerMetrics* metrics);

  // Returns when a DrainOrder has been carried out: true if every request had ended by itself, false if some were
  // handed back to their gateways.
  bool Run();

 private:
  struct Gateway {
    std::string name;
    std::shared_ptr<GatewaySink> sink;
    GatewayOutput output;  // of this turn
  };

  void Turn(std::vector<Message> messages);
  TimeUs WakeTime() const;

  // ---- what happened ----
  void On(GatewayJoined& joined);
  void On(GatewayGone& gone);
  void On(Submission& submission);
  void On(Rejection& rejection);
  void On(CancelOrder& cancel);
  void On(RankEvent& event);
  void On(DrainOrder& order);
  void On(WorkerGroup::Formed& formed);
  void On(WorkerGroup::Lost& lost);
  void On(CompletedStep& step);
  void TakeNews();
  void LearnCost(const CompletedStep& step);

  // ---- requests ----
  TenantId FindTenant(const Submission& submission);
  void Admit(Submission& submission, TenantId tenant);
  void Refuse(const Submission& submission, NotTaken why, std::string error);
  void Refuse(Rejection rejection);
  void SendCanary();
  void Plan();

  // ---- what the core says ----
  void Apply(const Event& event);
  void Deliver();
  void Deliver(const Token& token);
  void Deliver(const Finished& finished);
  void Deliver(const Refused& refused);
  GatewayOutput* OutputFor(const LiveRequest& request);
  void End(RequestId id, EndOutput end);

  void Flush();
  void Publish();
  bool IsDrained() const;
  bool HandBack();

  const EventLoopOptions options_;
  Inbox* const inbox_;
  ReplicaBoard* const board_;
  SchedulerMetrics* const metrics_;

  WorkerGroup group_;
  std::optional<GroupShape> shape_;  // once a group has stood
  std::unique_ptr<Scheduler> core_;  // likewise
  StepCostEstimate step_cost_;
  TenantTable tenants_;
  RequestTable requests_;
  std::map<GatewayId, Gateway> gateways_;
  RequestId next_request_ = 1;

  TimeUs now_ = 0;
  std::vector<Output> outputs_;
  std::vector<WorkerGroup::News> news_;
  std::map<RequestId, TokenLogprobs> logprobs_;  // of the step whose tokens are being delivered
  StepPlan plan_;
  size_t num_messages_ = 0;

  bool is_ready_ = false;  // this epoch has produced a token
  TimeUs canary_at_ = 0;   // when the next one is due, if nothing else runs
  bool is_draining_ = false;
  TimeUs drain_deadline_ = kNever;
};

}  // namespace weir::scheduler
