#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "scheduler/core/policy.h"

// Which tenants there are.  Gateways name them by path; the core knows numbers.  A tenant appears with its first
// request and stays: its counters are what fairness remembers.

namespace weir::scheduler {

class TenantTable {
 public:
  static constexpr size_t kMaxDepth = 8;
  static constexpr size_t kMaxNameBytes = 64;
  // The scheduler's own tenant, for canaries.
  static constexpr TenantId kOwn = 0;

  // `policy` holds no tenants yet.
  TenantTable(Policy policy, int32_t max_tenants);

  struct Found {
    TenantId id = -1;          // -1: refused
    bool has_changed = false;  // policy() is another: the core must be told before it sees the tenant
    bool is_full = false;
    std::string error;  // why it was refused
  };
  // The tenant at `path`, root first, with the weights of its nodes; missing weights count 1.  Only leaves of the tree
  // send requests: a node with children is refused, and so is a child of a node that has sent some.
  Found Find(const std::vector<std::string>& path, const std::vector<double>& weights);

  const Policy& policy() const { return policy_; }
  void SetStepCost(const StepCost& cost) { policy_.step_cost = cost; }
  int32_t max_tenants() const { return max_tenants_; }
  // "guangdong/foshan/desk".
  const std::string& name(TenantId id) const { return nodes_[id].name; }

 private:
  struct Node {
    std::string name;
    bool has_children = false;
    bool sends = false;
  };
  std::string FindError(const std::vector<std::string>& path) const;
  TenantId Add(std::string name, TenantId parent);

  Policy policy_;
  const int32_t max_tenants_;
  std::vector<Node> nodes_;                             // by TenantId
  absl::flat_hash_map<std::string, TenantId> by_name_;  // looked up, never walked
};

}  // namespace weir::scheduler
