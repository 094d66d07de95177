#include "gateway/service/health_service.h"

#include <optional>

namespace weir::gateway {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

constexpr size_t kMaxWatches = 1000;

}  // namespace

// Says the last status that it has not said: what changes while a write is on its way is joined.  The service's lock
// guards all of it.
class HealthService::WatchCall final : public grpc::ServerWriteReactor<HealthCheckResponse> {
 public:
  WatchCall(HealthService* service, std::string name) : name_(std::move(name)), service_(service) {}

  void Say(Status status) {
    wanted_ = status;
    Next();
  }

  void End(const grpc::Status& status) {
    if (std::exchange(is_over_, true)) return;
    Finish(status);
  }

  void OnWriteDone(bool ok) override {
    std::lock_guard lock(service_->mutex_);
    is_writing_ = false;
    if (ok) Next();
  }
  void OnCancel() override {
    std::lock_guard lock(service_->mutex_);
    End(grpc::Status::CANCELLED);
  }
  void OnDone() override {
    service_->Remove(this);
    delete this;
  }

  const std::string& name() const { return name_; }

 private:
  void Next() {
    if (is_writing_ || is_over_ || said_ == wanted_) return;
    said_ = wanted_;
    response_.set_status(*wanted_);
    is_writing_ = true;
    StartWrite(&response_);
  }

  const std::string name_;
  HealthService* const service_;
  HealthCheckResponse response_;
  std::optional<Status> wanted_, said_;
  bool is_writing_ = false;
  bool is_over_ = false;
};

HealthService::HealthService(const std::vector<std::string>& services) : services_(services.begin(), services.end()) {
  services_.insert("");
}

void HealthService::SetServing(bool is_serving) {
  std::lock_guard lock(mutex_);
  if (is_serving_ == is_serving) return;
  is_serving_ = is_serving;
  for (WatchCall* watch : watches_) watch->Say(StatusOf(watch->name()));
}

void HealthService::Shutdown() {
  std::lock_guard lock(mutex_);
  is_over_ = true;
  for (WatchCall* watch : watches_) watch->End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server stops"));
}

HealthService::Status HealthService::StatusOf(const std::string& service) const {
  if (!services_.contains(service)) return HealthCheckResponse::SERVICE_UNKNOWN;
  return is_serving_ ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context, const HealthCheckRequest* request,
                                               HealthCheckResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  std::lock_guard lock(mutex_);
  if (!services_.contains(request->service())) {
    reactor->Finish(grpc::Status(grpc::StatusCode::NOT_FOUND, "this server has no such service"));
    return reactor;
  }
  response->set_status(StatusOf(request->service()));
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* HealthService::List(grpc::CallbackServerContext* context,
                                              const grpc::health::v1::HealthListRequest*,
                                              grpc::health::v1::HealthListResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  std::lock_guard lock(mutex_);
  for (const std::string& service : services_) (*response->mutable_statuses())[service].set_status(StatusOf(service));
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerWriteReactor<HealthCheckResponse>* HealthService::Watch(grpc::CallbackServerContext*,
                                                                    const HealthCheckRequest* request) {
  auto* watch = new WatchCall(this, request->service());
  std::lock_guard lock(mutex_);
  watches_.insert(watch);
  if (is_over_) {
    watch->End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server stops"));
  } else if (watches_.size() > kMaxWatches) {
    watch->End(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many watches; use Check"));
  } else {
    watch->Say(StatusOf(request->service()));
  }
  return watch;
}

void HealthService::Remove(WatchCall* call) {
  std::lock_guard lock(mutex_);
  watches_.erase(call);
}

}  // namespace weir::gateway
