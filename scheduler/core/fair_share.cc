#include "scheduler/core/fair_share.h"

#include <algorithm>

#include "scheduler/core/check.h"

namespace weir::scheduler {

void FairShare::SetPolicy(const std::vector<TenantPolicy>& tenants) {
  WEIR_CHECK(tenants.size() >= tenants_.size(), "a policy may add tenants, never remove one");
  tenants_.resize(tenants.size());
  heap_.Resize(static_cast<int32_t>(tenants.size()));
  aside_.reserve(tenants.size());
  for (size_t i = 0; i < tenants.size(); ++i) tenants_[i].weight = tenants[i].weight;
}

void FairShare::Enter(TenantId tenant) {
  WEIR_CHECK(!is_queued(tenant), "entered twice");
  tenants_[tenant].counter = std::max(tenants_[tenant].counter, LevelOfQueue());
  Push(tenant);
}

// The least counter in the queue; with nobody queued, that of the last who left.
double FairShare::LevelOfQueue() const {
  if (heap_.empty() && aside_.empty()) return last_to_leave_ < 0 ? 0 : counter(last_to_leave_);
  double least = counter(heap_.empty() ? aside_.front() : heap_.top());
  for (const TenantId tenant : aside_) least = std::min(least, counter(tenant));
  return least;
}

void FairShare::Leave(TenantId tenant) {
  WEIR_CHECK(is_queued(tenant), "left without entering");
  if (tenants_[tenant].place == Place::kHeap) {
    heap_.Remove(tenant);
  } else {
    aside_.erase(std::find(aside_.begin(), aside_.end(), tenant));
  }
  tenants_[tenant].place = Place::kOut;
  last_to_leave_ = tenant;
}

void FairShare::Charge(TenantId tenant, double cost) {
  Tenant& charged = tenants_[tenant];
  charged.charged += cost;
  charged.counter += cost / charged.weight;
  if (charged.place == Place::kHeap) heap_.Update(tenant);
}

void FairShare::SetAside(TenantId tenant) {
  heap_.Remove(tenant);
  tenants_[tenant].place = Place::kAside;
  aside_.push_back(tenant);
}

void FairShare::RestoreAll() {
  for (const TenantId tenant : aside_) Push(tenant);
  aside_.clear();
}

void FairShare::Push(TenantId tenant) {
  tenants_[tenant].place = Place::kHeap;
  heap_.Push(tenant);
}

}  // namespace weir::scheduler
