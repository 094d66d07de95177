#pragma once

#include <grpcpp/grpcpp.h>

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "grpc/health/v1/health.grpc.pb.h"

// grpc.health.v1 of its own, because the library's cannot be described by reflection and knows no List.

namespace weir::gateway {

class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  // The whole server ("") and these services; all begin as not serving.
  explicit HealthService(const std::vector<std::string>& services);

  void SetServing(bool is_serving);
  // Ends all watches, for the server to stop.
  void Shutdown();

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::health::v1::HealthCheckResponse* response) override;
  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context, const grpc::health::v1::HealthListRequest*,
                                 grpc::health::v1::HealthListResponse* response) override;
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* context, const grpc::health::v1::HealthCheckRequest* request) override;

 private:
  class WatchCall;
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;

  Status StatusOf(const std::string& service) const;  // the lock is held
  void Remove(WatchCall* call);

  std::mutex mutex_;
  std::set<std::string> services_;
  bool is_serving_ = false;
  bool is_over_ = false;
  std::set<WatchCall*> watches_;
};

}  // namespace weir::gateway
