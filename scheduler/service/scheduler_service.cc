#include "scheduler/service/scheduler_service.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <atomic>
#include <chrono>
#include <utility>

#include "channels/live_calls.h"
#include "scheduler/service/gateway_stream.h"
#include "weir/scheduler/v1/scheduler.grpc.pb.h"

namespace weir::scheduler {
namespace {

constexpr int kMaxRequestBytes = 16 << 20;
constexpr int kKeepaliveMs = 10000;
constexpr int kKeepaliveTimeoutMs = 5000;

class Service final : public v1::SchedulerService::CallbackService {
 public:
  Service(const ServiceOptions& options, Inbox* inbox, ReplicaBoard* board)
      : options_(options), inbox_(inbox), board_(board) {}

  grpc::ServerBidiReactor<v1::ServeRequest, v1::ServeResponse>* Serve(grpc::CallbackServerContext* context) override {
    return new GatewayStream(next_gateway_++, context, options_, inbox_, board_, live_calls_);
  }

  const channels::LiveCalls& live_calls() const { return live_calls_; }

  grpc::ServerUnaryReactor* GetReplica(grpc::CallbackServerContext* context, const v1::GetReplicaRequest*,
                                       v1::GetReplicaResponse* response) override {
    FillReplica(options_.build, board_->Read(), *response->mutable_replica());
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  const ServiceOptions options_;
  Inbox* const inbox_;
  ReplicaBoard* const board_;
  std::atomic<GatewayId> next_gateway_{1};
  channels::LiveCalls live_calls_;
};

}  // namespace

class SchedulerServer::Parts {
 public:
  Parts(const ServiceOptions& options, Inbox* inbox, ReplicaBoard* board) : service(options, inbox, board) {}

  Service service;
  int port = 0;
  std::unique_ptr<grpc::Server> server;
};

SchedulerServer::SchedulerServer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

std::unique_ptr<SchedulerServer> SchedulerServer::Start(const ServiceOptions& options, Inbox* inbox,
                                                        ReplicaBoard* board, std::string& error) {
  auto parts = std::make_unique<Parts>(options, inbox, board);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &parts->port);
  builder.RegisterService(&parts->service);
  builder.SetMaxReceiveMessageSize(kMaxRequestBytes);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second scheduler on the port is a mistake
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  parts->server = builder.BuildAndStart();
  if (parts->server == nullptr) {
    error = "cannot listen on " + options.listen + ": is another process there, or the address not of this machine?";
    return nullptr;
  }
  auto server = std::unique_ptr<SchedulerServer>(new SchedulerServer(std::move(parts)));
  server->SetServing(false);
  return server;
}

SchedulerServer::~SchedulerServer() { Shutdown(0); }

int SchedulerServer::port() const { return parts_->port > 1 ? parts_->port : 0; }

void SchedulerServer::SetServing(bool is_serving) {
  grpc::HealthCheckServiceInterface* health = parts_->server->GetHealthCheckService();
  health->SetServingStatus(is_serving);
  health->SetServingStatus("weir.scheduler.v1.SchedulerService", is_serving);
}

void SchedulerServer::Shutdown(int64_t patience_ms) {
  channels::Close(*parts_->server, parts_->service.live_calls(), std::chrono::milliseconds(patience_ms));
}

}  // namespace weir::scheduler
