#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "scheduler/core/events.h"
#include "scheduler/core/scheduler.h"
#include "scheduler/core/step_plan.h"
#include "scheduler/service/result_gather.h"

namespace prometheus {
class Registry;
}

// The series whose subject is a replica's scheduler.  Labels are bounded: a tenant beyond the thousandth counts as
// "other"; no id and no text of a request ever becomes one.  Written by the event loop only.

namespace weir::scheduler {

class SchedulerMetrics {
 public:
  static constexpr size_t kMaxTenantLabels = 1000;

  SchedulerMetrics(std::shared_ptr<prometheus::Registry> registry, int32_t num_ranks, const std::string& build);
  ~SchedulerMetrics();

  void SetStepCost(const StepCost& cost);
  void StepPlanned(const StepPlan& plan);
  void StepCompleted(const CompletedStep& step);
  void RequestEnded(const Finished& finished, const std::string& tenant);
  // reason: a word of a fixed list.
  void RequestRefused(const std::string& reason);
  void GroupFormed(uint64_t epoch, TimeUs took_us);
  void GroupLost();
  void SetRankUp(int32_t rank, bool is_up);
  void SetStats(const Stats& stats, bool group_stands);
  // How full the bounded places are.
  void SetQueues(size_t inbox_messages, size_t num_gateways, size_t num_tenants);
  void SetReady(bool is_ready);

 private:
  struct Series;
  std::unique_ptr<Series> series_;
};

}  // namespace weir::scheduler
