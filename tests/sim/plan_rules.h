#pragma once

#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "scheduler/core/policy.h"
#include "scheduler/core/step_plan.h"
#include "tests/sim/clients.h"
#include "tests/sim/violation.h"
#include "tests/sim/workers.h"

// What every plan owes to policy: limits, the decode floor, whom it may preempt, and no idle room while somebody waits.

namespace weir::sim {

class PlanRules {
 public:
  using Counter = std::function<double(scheduler::TenantId)>;  // the scheduler's virtual counter of a tenant
  PlanRules(const scheduler::Limits& limits, const Clients& clients, const Workers& workers, Counter counter,
            Report& report)
      : limits_(limits), clients_(clients), workers_(workers), counter_(std::move(counter)), report_(report) {}

  void BeforePlan(size_t num_tenants);
  // Planning has taken these out of their slots; Workers::Forget has been told.
  void CheckPreempted(std::span<Request* const> preempted) const;
  // Workers::Execute has run it.
  void AfterPlan(const scheduler::StepPlan& plan, const scheduler::Policy& policy, std::span<Request* const> preempted);

  // No step could be planned.
  void CheckIdle() const;

 private:
  struct Holder {
    const Request* request;
    int32_t dp_group;
    uint32_t life;
    bool was_decoding;
    bool is_all_planned;  // its last token is in flight
  };

  void CheckLimits(const scheduler::StepPlan& plan, const scheduler::Policy& policy) const;
  void CheckDecodeFloor(const scheduler::StepPlan& plan, std::span<Request* const> preempted) const;
  bool WasPressed(int32_t dp_group, std::span<Request* const> preempted) const;
  void CheckRoomIsUsed(const scheduler::Policy& policy, std::span<Request* const> preempted);
  void CheckThrash(const scheduler::StepPlan& plan, std::span<Request* const> preempted) const;
  int32_t NumPromised(int32_t dp_group) const;
  bool IsAheadOfTheWaiting(const Request& request) const;
  bool CouldDecode(const Request& request, scheduler::StepId step) const;

  const scheduler::Limits limits_;
  const Clients& clients_;
  const Workers& workers_;
  const Counter counter_;
  Report& report_;
  std::vector<Holder> holders_;
  std::vector<int32_t> idle_plans_;  // by group: plans in a row that left room unused
  std::vector<double> counters_;     // of tenants, before the plan charged them
};

}  // namespace weir::sim
