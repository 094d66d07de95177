#include "gateway/serving/front_desk.h"

#include <vector>

#include "gateway/serving/endings.h"

namespace weir::gateway {

FrontDesk::FrontDesk(Options options, TextPool* pool, GatewayMetrics* metrics)
    : options_(options), pool_(pool), metrics_(metrics) {}

std::shared_ptr<ServedRequest> FrontDesk::Open(Arrival arrival, FramePort* port) {
  const std::string tenant = arrival.identity.TenantName();
  const int64_t bytes = arrival.bytes;
  auto request = std::make_shared<ServedRequest>(std::move(arrival), port, this);
  std::optional<RequestError> error = Admit(request);
  if (!error && !pool_->Post(tenant, bytes, [request] { request->Prepare(); })) {
    error = Overloaded("too many requests arrive at once");
  }
  if (error) request->Refuse(*error);
  return request;
}

// What is refused counts too, until its call is over.
std::optional<RequestError> FrontDesk::Admit(const std::shared_ptr<ServedRequest>& request) {
  const Identity& identity = request->identity();
  std::lock_guard lock(mutex_);
  live_.emplace(request.get(), request);
  const int32_t num_of_key = ++num_by_key_[identity.key_id];
  if (is_draining_) return Draining();
  if (static_cast<int64_t>(live_.size()) > options_.max_requests) {
    return Overloaded("this server has as many requests as it may take");
  }
  if (identity.max_concurrent_requests > 0 && num_of_key > identity.max_concurrent_requests) {
    return TooManyRequests(identity.TenantName(), identity.max_concurrent_requests);
  }
  return std::nullopt;
}

bool FrontDesk::PostText(const Identity& identity, int64_t bytes, std::function<void()> job) {
  return pool_->Post(identity.TenantName(), bytes, std::move(job));
}

bool FrontDesk::ClaimId(const std::string& tenant, const std::string& request_id) {
  std::lock_guard lock(mutex_);
  return ids_.emplace(std::pair(tenant, request_id), true).second;
}

void FrontDesk::Release(const std::shared_ptr<ServedRequest>& request, const std::string& tenant,
                        const std::string& request_id) {
  std::lock_guard lock(mutex_);
  if (live_.erase(request.get()) == 0) return;
  const auto of_key = num_by_key_.find(request->identity().key_id);
  if (--of_key->second == 0) num_by_key_.erase(of_key);
  if (!request_id.empty()) ids_.erase({tenant, request_id});
}

void FrontDesk::StartDrain() {
  std::lock_guard lock(mutex_);
  is_draining_ = true;
}

bool FrontDesk::is_draining() const {
  std::lock_guard lock(mutex_);
  return is_draining_;
}

std::vector<std::shared_ptr<ServedRequest>> FrontDesk::Live() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<ServedRequest>> requests;
  requests.reserve(live_.size());
  for (const auto& [pointer, request] : live_) requests.push_back(request);
  return requests;
}

void FrontDesk::StopShort() {
  for (const auto& request : Live()) request->StopShort();
}

void FrontDesk::OnTime(TimeUs now) {
  for (const auto& request : Live()) request->OnTime(now);
  metrics_->SetInflight(num_requests(), pool_->waiting_bytes());
}

int64_t FrontDesk::num_requests() const {
  std::lock_guard lock(mutex_);
  return static_cast<int64_t>(live_.size());
}

}  // namespace weir::gateway
