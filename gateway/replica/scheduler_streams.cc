#include "gateway/replica/scheduler_streams.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <deque>
#include <utility>

#include "channels/internal_channel.h"
#include "gateway/replica/scheduler_messages.h"
#include "weir/scheduler/v1/scheduler.grpc.pb.h"

namespace weir::gateway {
namespace {

using scheduler::v1::SchedulerService;
using scheduler::v1::ServeRequest;
using scheduler::v1::ServeResponse;

constexpr int kMaxMessageBytes = 64 << 20;
constexpr std::chrono::milliseconds kQuestionDeadline{2000};

std::string Describe(const grpc::Status& status) {
  return status.ok() ? "the scheduler has ended the stream" : status.error_message();
}

}  // namespace

void SchedulerStreams::Living::Add() {
  std::lock_guard lock(mutex);
  ++num;
}

void SchedulerStreams::Living::Remove() {
  std::lock_guard lock(mutex);
  --num;
  changed.notify_all();
}

// Owns itself until OnDone; the channel's pointer to it is weak.
class SchedulerStreams::Stream final : public grpc::ClientBidiReactor<ServeRequest, ServeResponse> {
 public:
  static std::shared_ptr<Stream> Start(int32_t replica, uint64_t number, SchedulerService::Stub& stub,
                                       const Options& options, const std::function<void(ReplicaEvent)>& on_event,
                                       std::shared_ptr<Living> living) {
    auto stream = std::shared_ptr<Stream>(new Stream(replica, number, options, on_event, std::move(living)));
    stream->self_ = stream;
    stub.async()->Serve(&stream->context_, stream.get());
    stream->AddHold();  // writes come from outside
    auto hello = std::make_unique<ServeRequest>();
    hello->mutable_hello()->set_build(options.build);
    hello->mutable_hello()->set_gateway_name(options.gateway_name);
    stream->Write(std::move(hello));
    stream->StartRead(&stream->response_);
    stream->StartCall();
    return stream;
  }

  bool HasRoom() {
    std::lock_guard lock(mutex_);
    return waiting_bytes_ < max_waiting_bytes_;
  }

  void Write(std::unique_ptr<ServeRequest> message) {
    const auto bytes = static_cast<int64_t>(message->ByteSizeLong());
    std::lock_guard lock(mutex_);
    if (is_over_) return;
    waiting_bytes_ += bytes;
    waiting_.push_back({std::move(message), bytes});
    if (waiting_.size() == 1) StartWrite(waiting_.front().message.get());
  }

  void Cancel() { context_.TryCancel(); }

  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    waiting_bytes_ -= waiting_.front().bytes;
    waiting_.pop_front();
    if (ok && !is_over_ && !waiting_.empty()) StartWrite(waiting_.front().message.get());
  }

  void OnReadDone(bool ok) override {
    if (!ok) return StopWriting();
    Read();
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    on_event_({.replica = replica_, .stream = number_, .what = ReplicaGone{Describe(status)}});
    const std::shared_ptr<Living> living = living_;
    self_.reset();  // may destroy this
    living->Remove();
  }

 private:
  struct Waiting {
    std::unique_ptr<ServeRequest> message;
    int64_t bytes = 0;
  };

  Stream(int32_t replica, uint64_t number, const Options& options, const std::function<void(ReplicaEvent)>& on_event,
         std::shared_ptr<Living> living)
      : replica_(replica),
        number_(number),
        max_waiting_bytes_(options.max_waiting_bytes),
        on_event_(on_event),
        living_(std::move(living)) {
    living_->Add();
  }

  void Read() {
    ReplicaEvent event{.replica = replica_, .stream = number_};
    if (response_.has_hello()) {
      event.what = ReplicaJoined{ReadReplica(response_.hello().replica())};
    } else if (response_.has_output()) {
      event.what = ReadOutput(response_.output());
    } else {
      return;  // of a later version
    }
    on_event_(std::move(event));
  }

  void StopWriting() {
    {
      std::lock_guard lock(mutex_);
      is_over_ = true;
    }
    RemoveHold();
  }

  const int32_t replica_;
  const uint64_t number_;
  const int64_t max_waiting_bytes_;
  const std::function<void(ReplicaEvent)>& on_event_;
  const std::shared_ptr<Living> living_;
  std::shared_ptr<Stream> self_;
  grpc::ClientContext context_;
  ServeResponse response_;

  std::mutex mutex_;
  std::deque<Waiting> waiting_;  // the first is being written
  int64_t waiting_bytes_ = 0;
  bool is_over_ = false;
};

struct SchedulerStreams::Channel {
  std::unique_ptr<SchedulerService::Stub> stub;
  std::weak_ptr<Stream> stream;
  uint64_t stream_number = 0;
};

struct SchedulerStreams::Question {
  grpc::ClientContext context;
  scheduler::v1::GetReplicaRequest request;
  scheduler::v1::GetReplicaResponse response;
};

SchedulerStreams::SchedulerStreams(Options options, std::function<void(ReplicaEvent)> on_event)
    : options_(std::move(options)), on_event_(std::move(on_event)) {
  for (const std::string& address : options_.addresses) {
    channels_.push_back(std::make_unique<Channel>());
    channels_.back()->stub = SchedulerService::NewStub(channels::NewInternalChannel(address, kMaxMessageBytes));
  }
}

SchedulerStreams::~SchedulerStreams() {
  for (int32_t replica = 0; replica < static_cast<int32_t>(channels_.size()); ++replica) Close(replica);
  std::unique_lock lock(living_->mutex);
  living_->changed.wait(lock, [this] { return living_->num == 0; });
}

uint64_t SchedulerStreams::Open(int32_t replica) {
  std::lock_guard lock(mutex_);
  Channel& channel = *channels_[replica];
  channel.stream_number = next_stream_++;
  channel.stream = Stream::Start(replica, channel.stream_number, *channel.stub, options_, on_event_, living_);
  return channel.stream_number;
}

void SchedulerStreams::Close(int32_t replica) {
  if (const auto stream = StreamOf(replica)) stream->Cancel();
}

void SchedulerStreams::Poll(int32_t replica) {
  std::lock_guard lock(mutex_);
  Channel& channel = *channels_[replica];
  auto question = std::make_shared<Question>();
  question->context.set_deadline(std::chrono::system_clock::now() + kQuestionDeadline);
  living_->Add();
  channel.stub->async()->GetReplica(
      &question->context, &question->request, &question->response,
      [this, replica, number = channel.stream_number, question, living = living_](const grpc::Status& status) {
        if (status.ok()) {
          on_event_(
              {.replica = replica, .stream = number, .what = ReplicaPolled{ReadReplica(question->response.replica())}});
        }
        living->Remove();
      });
}

bool SchedulerStreams::Submit(int32_t replica, uint64_t attempt, const Submission& submission,
                              const std::vector<TokenId>& resumed, std::optional<int64_t> deadline_ms) {
  const auto stream = StreamOf(replica);
  if (stream == nullptr) return true;  // its ReplicaGone is on the way
  if (!stream->HasRoom()) return false;
  auto message = std::make_unique<ServeRequest>();
  FillSubmit(attempt, submission, resumed, deadline_ms, *message->mutable_submit());
  stream->Write(std::move(message));
  return true;
}

void SchedulerStreams::Cancel(int32_t replica, uint64_t attempt, bool is_stop) {
  const auto stream = StreamOf(replica);
  if (stream == nullptr) return;
  auto message = std::make_unique<ServeRequest>();
  message->mutable_cancel()->set_stream_request_id(attempt);
  message->mutable_cancel()->set_is_stop(is_stop);
  stream->Write(std::move(message));
}

std::shared_ptr<SchedulerStreams::Stream> SchedulerStreams::StreamOf(int32_t replica) {
  std::lock_guard lock(mutex_);
  return channels_[replica]->stream.lock();
}

}  // namespace weir::gateway
