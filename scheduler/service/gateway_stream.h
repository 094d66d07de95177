#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "channels/live_calls.h"
#include "scheduler/service/inbox.h"
#include "scheduler/service/replica_board.h"
#include "scheduler/service/scheduler_service.h"
#include "weir/scheduler/v1/scheduler.grpc.pb.h"

// One gateway's stream.

namespace weir::scheduler {

class GatewayStream;

void FillReplica(const std::string& build, const ReplicaView& view, v1::Replica& replica);

// What waits to be written to a gateway.  While a message is on its way, everything that comes is put into the next
// one. Shared by the event loop and the stream; outlives the stream for the loop.
class GatewayOutbox final : public GatewaySink {
 public:
  GatewayOutbox(GatewayStream* stream, int64_t max_bytes) : stream_(stream), max_bytes_(max_bytes) {}

  void Send(GatewayOutput output) override;
  void Close(const std::string& reason) override;

  void SendHello(const std::string& build, const ReplicaView& view);
  // Ends the stream; nothing is written after it.  The first call counts.
  void Finish(const grpc::Status& status);
  void OnWriteDone(bool ok);
  void Detach();  // the stream is about to be destroyed

 private:
  void StartNext();  // mutex_ is held

  std::mutex mutex_;
  GatewayStream* stream_;  // nullptr: gone
  const int64_t max_bytes_;
  v1::ServeResponse writing_;
  v1::ServeResponse waiting_;
  int64_t waiting_bytes_ = 0;
  bool has_waiting_ = false;
  bool is_writing_ = false;
  bool is_finished_ = false;
  bool is_cut_off_ = false;
  bool is_closing_ = false;  // finishes with closing_ when all is written
  grpc::Status closing_;
};

class GatewayStream final : public grpc::ServerBidiReactor<v1::ServeRequest, v1::ServeResponse> {
 public:
  GatewayStream(GatewayId id, grpc::CallbackServerContext* context, const ServiceOptions& options, Inbox* inbox,
                ReplicaBoard* board, const channels::LiveCalls& live_calls);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override { outbox_->OnWriteDone(ok); }
  void OnCancel() override;
  void OnDone() override;
  void CutOff() { context_->TryCancel(); }

 private:
  bool Take();
  bool Take(const v1::GatewayHello& hello);
  bool Take(const v1::Submit& submit);
  bool Take(const v1::Cancel& cancel);
  bool Refuse(uint64_t number, NotTaken why, std::string error);

  const channels::LiveCalls::Call live_;
  const GatewayId id_;
  grpc::CallbackServerContext* const context_;
  const ServiceOptions& options_;
  Inbox* const inbox_;
  ReplicaBoard* const board_;
  v1::ServeRequest request_;
  bool has_joined_ = false;
  const std::shared_ptr<GatewayOutbox> outbox_;
};

}  // namespace weir::scheduler
