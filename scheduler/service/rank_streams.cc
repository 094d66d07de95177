#include "scheduler/service/rank_streams.h"

#include <grpcpp/grpcpp.h>
#include <signal.h>

#include <algorithm>
#include <deque>
#include <utility>

#include "channels/internal_channel.h"
#include "scheduler/service/rank_messages.h"
#include "weir/worker/v1/worker.grpc.pb.h"

namespace weir::scheduler {
namespace {

using worker::v1::RunRequest;
using worker::v1::RunResponse;

constexpr int kMaxMessageBytes = 256 << 20;
constexpr size_t kMaxWaitingMessages = 64;  // to one rank; the loop is at most a few steps ahead

std::string Describe(const grpc::Status& status) {
  return status.ok() ? "the rank has ended the stream" : status.error_message();
}

}  // namespace

// Owns itself until OnDone; the channel's pointer to it is weak.
class RankStreams::Stream final : public grpc::ClientBidiReactor<RunRequest, RunResponse> {
 public:
  static std::shared_ptr<Stream> Start(int32_t rank, uint64_t number, worker::v1::WorkerService::Stub& stub,
                                       const std::string& build, Inbox* inbox, std::shared_ptr<Living> living) {
    auto stream = std::shared_ptr<Stream>(new Stream(rank, number, inbox, std::move(living)));
    stream->self_ = stream;
    stub.async()->Run(&stream->context_, stream.get());
    stream->AddHold();  // writes come from outside
    auto hello = std::make_shared<RunRequest>();
    hello->mutable_hello()->set_build(build);
    stream->Write(std::move(hello));
    stream->StartRead(&stream->response_);
    stream->StartCall();
    return stream;
  }

  void Write(std::shared_ptr<const RunRequest> message) {
    std::lock_guard lock(mutex_);
    if (is_over_) return;
    if (waiting_.size() >= kMaxWaitingMessages) return context_.TryCancel();
    waiting_.push_back(std::move(message));
    if (waiting_.size() == 1) StartWrite(waiting_.front().get());
  }

  void Cancel() { context_.TryCancel(); }

  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    if (!waiting_.empty()) waiting_.pop_front();
    if (ok && !is_over_ && !waiting_.empty()) StartWrite(waiting_.front().get());
  }

  void OnReadDone(bool ok) override {
    if (!ok) return StopWriting();
    if (std::string error = is_given_up_ ? "" : Read(); !error.empty()) GiveUp(std::move(error));
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    RankGone gone{.reason = Describe(status), .has_refused = status.error_code() == grpc::FAILED_PRECONDITION};
    {
      std::lock_guard lock(mutex_);
      if (!reason_.empty()) gone.reason = reason_;
    }
    inbox_->Push(RankEvent{.rank = rank_, .stream = number_, .what = std::move(gone)});
    const std::shared_ptr<Living> living = living_;
    self_.reset();  // may destroy this
    std::lock_guard lock(living->mutex);
    --living->num;
    living->changed.notify_all();
  }

 private:
  Stream(int32_t rank, uint64_t number, Inbox* inbox, std::shared_ptr<Living> living)
      : rank_(rank), number_(number), inbox_(inbox), living_(std::move(living)) {
    std::lock_guard lock(living_->mutex);
    ++living_->num;
  }

  std::string Read() {
    RankEvent event{.rank = rank_, .stream = number_};
    if (std::string error = ReadRankMessage(response_, event.what); !error.empty()) return error;
    return inbox_->Push(std::move(event)) ? "" : "it says more than can be listened to";
  }

  // What comes after is not listened to; the stream ends with a read that fails.
  void GiveUp(std::string reason) {
    is_given_up_ = true;
    {
      std::lock_guard lock(mutex_);
      reason_ = std::move(reason);
    }
    context_.TryCancel();
  }

  void StopWriting() {
    {
      std::lock_guard lock(mutex_);
      is_over_ = true;
    }
    RemoveHold();
  }

  const int32_t rank_;
  const uint64_t number_;
  Inbox* const inbox_;
  const std::shared_ptr<Living> living_;
  std::shared_ptr<Stream> self_;
  grpc::ClientContext context_;
  RunResponse response_;
  bool is_given_up_ = false;  // of the reading side

  std::mutex mutex_;
  std::deque<std::shared_ptr<const RunRequest>> waiting_;  // the first is being written
  bool is_over_ = false;
  std::string reason_;  // ours, for ending it
};

struct RankStreams::Channel {
  std::unique_ptr<worker::v1::WorkerService::Stub> stub;
  std::weak_ptr<Stream> stream;
};

RankStreams::RankStreams(const std::vector<std::string>& addresses, std::string build, Inbox* inbox)
    : build_(std::move(build)), inbox_(inbox) {
  for (const std::string& address : addresses) {
    channels_.push_back(std::make_unique<Channel>());
    channels_.back()->stub =
        worker::v1::WorkerService::NewStub(channels::NewInternalChannel(address, kMaxMessageBytes));
  }
}

RankStreams::~RankStreams() {
  for (int32_t rank = 0; rank < static_cast<int32_t>(channels_.size()); ++rank) Close(rank);
  std::unique_lock lock(living_->mutex);
  living_->changed.wait(lock, [this] { return living_->num == 0; });
}

uint64_t RankStreams::Open(int32_t rank) {
  Close(rank);
  const uint64_t number = next_stream_++;
  channels_[rank]->stream = Stream::Start(rank, number, *channels_[rank]->stub, build_, inbox_, living_);
  return number;
}

void RankStreams::Close(int32_t rank) {
  if (const auto stream = channels_[rank]->stream.lock()) stream->Cancel();
  channels_[rank]->stream.reset();
}

void RankStreams::FormGroup(int32_t rank, const GroupForm& form) {
  auto message = std::make_shared<RunRequest>();
  worker::v1::FormGroup& out = *message->mutable_form_group();
  out.set_epoch(form.epoch);
  for (const std::string& address : form.addresses) out.add_addresses(address);
  out.set_token(form.token);
  out.set_collective_deadline_ms(static_cast<uint32_t>(form.collective_deadline_us / 1000));
  out.set_connect_deadline_ms(static_cast<uint32_t>(form.connect_deadline_us / 1000));
  Send(rank, std::move(message));
}

void RankStreams::Send(int32_t rank, std::shared_ptr<const RunRequest> plan) {
  if (const auto stream = channels_[rank]->stream.lock()) stream->Write(std::move(plan));
}

void RankStreams::Kill(uint64_t pid) {
  if (pid > 1) ::kill(static_cast<pid_t>(pid), SIGKILL);
}

}  // namespace weir::scheduler
