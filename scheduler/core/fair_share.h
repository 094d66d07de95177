#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/core/indexed_heap.h"
#include "scheduler/core/policy.h"
#include "scheduler/core/types.h"

// Whose turn it is: weighted virtual token counters (VTC, Sheng et al., OSDI 2024).
//
// A tenant is queued while it has prompt rows to be computed (waiting requests, or running ones that are not through
// their prompt).  The queued tenant with the least counter goes next; what it computes is added to its counter, divided
// by its weight.  A tenant that comes back to the queue is lifted to the least counter there, so that idling saves
// nothing; if the queue is empty, to the counter of the tenant that left it last, so that a flood that pauses for a
// moment does not become equal to those it kept waiting.
//
// The order is over all tenants by themselves.  `parent` counts only in sums (Scheduler::service): picking down a tree
// replaces Least(), and nothing else here or in the step.

namespace weir::scheduler {

class FairShare {
 public:
  FairShare() = default;
  FairShare(const FairShare&) = delete;
  FairShare& operator=(const FairShare&) = delete;

  // Tenants may be added; what the others have been charged stays.
  void SetPolicy(const std::vector<TenantPolicy>& tenants);

  void Enter(TenantId tenant);  // has prompt rows to compute, and had none
  void Leave(TenantId tenant);  // has none any more
  bool is_queued(TenantId tenant) const { return tenants_[tenant].place != Place::kOut; }

  void Charge(TenantId tenant, double cost);

  // The queued tenant to serve next, or -1.  Equal counters: the smaller id.
  TenantId Least() const { return heap_.empty() ? -1 : heap_.top(); }

  // Least() passes over this tenant until RestoreAll.
  void SetAside(TenantId tenant);
  void RestoreAll();

  int32_t num_queued() const { return heap_.size() + static_cast<int32_t>(aside_.size()); }
  double counter(TenantId tenant) const { return tenants_[tenant].counter; }
  double charged(TenantId tenant) const { return tenants_[tenant].charged; }
  int32_t num_tenants() const { return static_cast<int32_t>(tenants_.size()); }

 private:
  enum class Place : uint8_t { kOut, kHeap, kAside };
  struct Tenant {
    double weight = 1;
    double counter = 0;
    double charged = 0;
    Place place = Place::kOut;
  };
  struct ByCounter {
    const std::vector<Tenant>* tenants;
    bool operator()(TenantId a, TenantId b) const {
      const double counter_a = (*tenants)[a].counter, counter_b = (*tenants)[b].counter;
      return counter_a != counter_b ? counter_a < counter_b : a < b;
    }
  };

  double LevelOfQueue() const;
  void Push(TenantId tenant);

  std::vector<Tenant> tenants_;
  IndexedHeap<ByCounter> heap_{ByCounter{&tenants_}};
  std::vector<TenantId> aside_;
  TenantId last_to_leave_ = -1;
};

}  // namespace weir::scheduler
