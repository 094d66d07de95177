#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "scheduler/core/policy.h"

// Who got how much, measured from the plans alone.
//
// The bound of virtual token counters (Sheng et al., OSDI 2024, theorem 4.4, with weights): over any interval in which
// two tenants both keep requests waiting,
//     | W_f / w_f  -  W_g / w_g |  <=  2 U,    U = max(cost of the longest waiting sequence, cost of a cache full of
//                                                     generated tokens) / min(w_f, w_g).
// What is computed again after a preemption or a loss is service too, and comes on
// top of the bound: the theorem knows no preemption.  Shares are flat: the core does not look at parents yet.
//
// A tenant's class that keeps waiting gets at least its part p of the tenant's service over any interval, what is
// computed again left out, but for
//     kMaxClassLagInCaches p U   others' generated tokens run on, and again while room is kept for another's turn
//     kMaxClassLagInSteps        steps full of prompt rows: the core remembers four that a class had too many, and a
//                                chunk is served whole
// which is no theorem; docs/simulation.md says what was seen.

namespace weir::sim {

inline constexpr double kMaxGapOverU = 2;
inline constexpr double kMaxClassLagInCaches = 4;
inline constexpr double kMaxClassLagInSteps = 5;

class Fairness {
 public:
  void SetPolicy(const scheduler::Policy& policy);  // intervals begin anew
  // Of all groups, of one request with its output, and of one step; the largest counts.
  void SetCapacity(int64_t cache_tokens, int64_t request_tokens, int64_t step_tokens);
  void AddWaiting(scheduler::TenantId tenant, scheduler::PriorityClass priority, int64_t num_tokens);
  void RemoveWaiting(scheduler::TenantId tenant, scheduler::PriorityClass priority);
  struct Rows {
    int32_t num_prompt = 0;
    int32_t num_generated = 0;
    int32_t num_recomputed = 0;  // of them: had been computed before a preemption or a loss
    double num_context = 0;      // sum of the positions they attend to
  };
  void Serve(scheduler::TenantId tenant, scheduler::PriorityClass priority, const Rows& rows);
  void Check();  // after every plan

  // What broke the bounds first; empty while they hold.
  const std::string& broken_gap() const { return broken_gap_; }
  const std::string& broken_class_share() const { return broken_class_share_; }

  double cost_planned() const { return cost_planned_; }
  double max_gap_over_u() const { return max_gap_over_u_; }
  double max_class_lag_over_bound() const { return max_class_lag_over_bound_; }
  double service(scheduler::TenantId tenant) const { return nodes_[static_cast<size_t>(tenant)].service; }
  int32_t num_waiting(scheduler::TenantId tenant) const { return nodes_[static_cast<size_t>(tenant)].num_waiting; }

 private:
  template <typename T>
  using ByClass = std::array<T, scheduler::kNumPriorityClasses>;
  struct Node {
    // The least weight it ever had: what was uneven, but within bounds, under earlier weights must still be made good.
    double least_weight = std::numeric_limits<double>::infinity();
    double service = 0;
    double recomputed = 0;  // part of it
    int32_t num_waiting = 0;
    bool was_idle = true;  // waited for nothing at some time since the last check
    ByClass<double> class_service = {};
    ByClass<double> least_lag = {};
    ByClass<int32_t> class_waiting = {};
    ByClass<bool> class_was_idle = {true, true, true};
  };
  struct Pair {
    size_t a = 0;
    size_t b = 0;
    bool is_open = false;
    double low = 0;
    double high = 0;
    double recomputed_before = 0;
  };

  double unit() const;
  double MaxClassLag(size_t class_index) const;
  void CheckPair(Pair& pair);
  void CheckClasses(size_t tenant);

  scheduler::Policy policy_;
  std::vector<Node> nodes_;
  std::vector<Pair> pairs_;  // of tenants
  int64_t cache_tokens_ = 0;
  int64_t request_tokens_ = 0;
  int64_t step_tokens_ = 0;
  int64_t longest_ = 0;
  double cost_planned_ = 0;
  double max_gap_over_u_ = 0;
  double max_class_lag_over_bound_ = 0;
  std::string broken_gap_;
  std::string broken_class_share_;
};

}  // namespace weir::sim
