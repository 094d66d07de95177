#include "tests/gateway/fake_scheduler.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "weir/scheduler/v1/scheduler.grpc.pb.h"

namespace weir::gateway {
namespace {

namespace wire = scheduler::v1;
using Stream = grpc::ServerReaderWriter<wire::ServeResponse, wire::ServeRequest>;

constexpr std::chrono::seconds kPatience{10};

// Messages that a test waits for.
template <typename Message>
class Mailbox {
 public:
  void Put(Message message) {
    std::lock_guard lock(mutex_);
    messages_.push_back(std::move(message));
    arrived_.notify_all();
  }
  std::optional<Message> Take() {
    std::unique_lock lock(mutex_);
    if (!arrived_.wait_for(lock, kPatience, [this] { return !messages_.empty(); })) return std::nullopt;
    Message message = std::move(messages_.front());
    messages_.pop_front();
    return message;
  }
  bool empty() const {
    std::lock_guard lock(mutex_);
    return messages_.empty();
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<Message> messages_;
};

}  // namespace

class FakeScheduler::Service final : public wire::SchedulerService::Service {
 public:
  grpc::Status Serve(grpc::ServerContext*, Stream* stream) override {
    wire::ServeRequest request;
    while (stream->Read(&request)) {
      if (request.has_hello()) {
        hellos.Put(request.hello());
        wire::ServeResponse response;
        *response.mutable_hello()->mutable_replica() = replica();
        stream->Write(response);
        std::lock_guard lock(mutex);
        current = stream;
      } else if (request.has_submit()) {
        const auto handler = submit_handler();
        handler ? handler(request.submit()) : submits.Put(request.submit());
      } else if (request.has_cancel()) {
        cancels.Put(request.cancel());
      }
    }
    std::lock_guard lock(mutex);
    if (current == stream) current = nullptr;
    return grpc::Status::OK;
  }

  grpc::Status GetReplica(grpc::ServerContext*, const wire::GetReplicaRequest*,
                          wire::GetReplicaResponse* response) override {
    *response->mutable_replica() = replica();
    return grpc::Status::OK;
  }

  wire::Replica replica() {
    std::lock_guard lock(mutex);
    return view;
  }
  std::function<void(const wire::Submit&)> submit_handler() {
    std::lock_guard lock(mutex);
    return on_submit;
  }

  bool Send(const wire::StepOutput& output) {
    wire::ServeResponse response;
    *response.mutable_output() = output;
    std::lock_guard lock(mutex);
    return current != nullptr && current->Write(response);
  }

  std::mutex mutex;
  Stream* current = nullptr;
  wire::Replica view = Ready();
  std::function<void(const wire::Submit&)> on_submit;
  Mailbox<wire::GatewayHello> hellos;
  Mailbox<wire::Submit> submits;
  Mailbox<wire::Cancel> cancels;
};

class FakeScheduler::Parts {
 public:
  Service service;
  std::unique_ptr<grpc::Server> server;
};

FakeScheduler::FakeScheduler(std::string address) : address_(std::move(address)), parts_(std::make_unique<Parts>()) {
  Restart();
}

FakeScheduler::~FakeScheduler() { Kill(); }

void FakeScheduler::Restart() {
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address_, grpc::InsecureServerCredentials());
  builder.RegisterService(&parts_->service);
  builder.SetMaxReceiveMessageSize(64 << 20);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::CQ_TIMEOUT_MSEC, 100);  // ends at once
  parts_->server = builder.BuildAndStart();
}

void FakeScheduler::Kill() {
  if (parts_->server == nullptr) return;
  parts_->server->Shutdown(std::chrono::system_clock::now());
  parts_->server->Wait();
  parts_->server.reset();
}

wire::Replica FakeScheduler::Ready() {
  wire::Replica replica;
  replica.set_build("fake");
  replica.set_max_model_len(2000);
  replica.set_vocab_size(300);
  replica.set_block_size(64);
  replica.set_is_ready(true);
  return replica;
}

void FakeScheduler::SetReplica(const wire::Replica& replica) {
  std::lock_guard lock(parts_->service.mutex);
  parts_->service.view = replica;
}

std::optional<wire::Submit> FakeScheduler::NextSubmit() { return parts_->service.submits.Take(); }
std::optional<wire::Cancel> FakeScheduler::NextCancel() { return parts_->service.cancels.Take(); }
std::optional<wire::GatewayHello> FakeScheduler::NextHello() { return parts_->service.hellos.Take(); }
bool FakeScheduler::HasSubmit() const { return !parts_->service.submits.empty(); }

void FakeScheduler::OnSubmit(std::function<void(const wire::Submit&)> on_submit) {
  std::lock_guard lock(parts_->service.mutex);
  parts_->service.on_submit = std::move(on_submit);
}

bool FakeScheduler::Send(const wire::StepOutput& output) { return parts_->service.Send(output); }

void FakeScheduler::Admit(uint64_t number) {
  wire::StepOutput output;
  output.add_admitted(number);
  Send(output);
}

void FakeScheduler::Token(uint64_t number, uint32_t index, uint32_t token) {
  wire::StepOutput output;
  wire::TokenOutput& out = *output.add_tokens();
  out.set_stream_request_id(number);
  out.set_index(index);
  out.mutable_token()->set_token_id(token);
  Send(output);
}

void FakeScheduler::End(uint64_t number, wire::EndReason reason) {
  wire::StepOutput output;
  wire::RequestEnd& end = *output.add_ends();
  end.set_stream_request_id(number);
  end.set_reason(reason);
  Send(output);
}

}  // namespace weir::gateway
