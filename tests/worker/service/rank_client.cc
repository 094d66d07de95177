#include "tests/worker/service/rank_client.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "weir/worker/v1/worker.grpc.pb.h"
#include "worker/service/handshake_codec.h"
#include "worker/service/plan_codec.h"
#include "worker/service/stream_limits.h"

namespace weir::worker {
namespace {

std::shared_ptr<grpc::Channel> NewChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  // A connection of its own: no back-off left over from an earlier stream to a rank that has restarted.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

uint64_t NextStream() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

absl::Status ToAbsl(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

std::string Differs(const char* what, const absl::AlphaNum& expected, const absl::AlphaNum& found) {
  return absl::StrCat("; ", what, " is ", found, ", expected ", expected);
}

absl::Status CheckHello(const RankHello& hello, const RankClientOptions& options) {
  std::string wrong;
  if (hello.build != options.build) wrong += Differs("build", options.build, hello.build);
  if (hello.rank != options.rank) wrong += Differs("rank", options.rank, hello.rank);
  if (hello.tp != options.tp) wrong += Differs("tensor_parallel_size", options.tp, hello.tp);
  if (hello.dp != options.dp) wrong += Differs("data_parallel_size", options.dp, hello.dp);
  if (options.manifest_hash && hello.manifest_hash != *options.manifest_hash) {
    wrong += Differs("the model's manifest hash", absl::Hex(*options.manifest_hash), absl::Hex(hello.manifest_hash));
  }
  if (wrong.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the worker at ", options.address, " is not what this replica needs", wrong));
}

}  // namespace

// gRPC may run reactions at once in the thread that calls one of its functions: none is called with the mutex held.
class RankClient::Stream : public grpc::ClientBidiReactor<v1::RunRequest, v1::RunResponse> {
 public:
  Stream(RankClientOptions options, std::shared_ptr<RankInbox> inbox)
      : options_(std::move(options)),
        inbox_(std::move(inbox)),
        number_(NextStream()),
        stub_(v1::WorkerService::NewStub(NewChannel(options_.address))) {}

  void Start();
  uint64_t number() const { return number_; }
  bool Send(v1::RunRequest request);
  void Cancel(const absl::Status& reason);
  void WaitUntilDone();

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  void Advance();  // starts the next write, or lets the call end
  absl::Status Take(const v1::RunResponse& response);
  absl::Status TakeHello(const v1::WorkerHello& message);
  absl::Status TakeResult(const v1::StepResult& message);
  absl::Status Put(decltype(RankEvent::what) what);

  const RankClientOptions options_;
  const std::shared_ptr<RankInbox> inbox_;
  const uint64_t number_;
  const std::unique_ptr<v1::WorkerService::Stub> stub_;
  grpc::ClientContext context_;
  v1::RunResponse response_;        // read into by gRPC
  std::optional<RankHello> hello_;  // of reactions only

  std::mutex mutex_;
  std::condition_variable done_;
  std::deque<v1::RunRequest> requests_;  // the first is being written when is_writing_
  bool is_writing_ = false;
  bool is_over_ = false;  // nothing is written or read any more
  bool is_held_ = true;   // gRPC keeps the call for writes from other threads
  bool is_done_ = false;
  absl::Status reason_;  // why this side ended the call
};

void RankClient::Stream::Start() {
  stub_->async()->Run(&context_, this);
  v1::RunRequest request;
  request.mutable_hello()->set_build(options_.build);
  requests_.push_back(std::move(request));
  is_writing_ = true;
  AddHold();
  StartRead(&response_);
  StartWrite(&requests_.front());
  StartCall();
}

bool RankClient::Stream::Send(v1::RunRequest request) {
  bool is_full;
  {
    std::lock_guard lock(mutex_);
    if (is_over_) return false;
    is_full = requests_.size() >= kMaxUnsent;
    if (!is_full) requests_.push_back(std::move(request));
  }
  if (is_full) {
    Cancel(absl::ResourceExhaustedError(absl::StrCat("the rank has left ", kMaxUnsent, " orders unread")));
  } else {
    Advance();
  }
  return !is_full;
}

void RankClient::Stream::Cancel(const absl::Status& reason) {
  {
    std::lock_guard lock(mutex_);
    if (reason_.ok()) reason_ = reason;
    is_over_ = true;
  }
  context_.TryCancel();
  Advance();
}

void RankClient::Stream::Advance() {
  const v1::RunRequest* next = nullptr;
  bool lets_go = false;
  {
    std::lock_guard lock(mutex_);
    if (is_writing_) return;
    if (is_over_) {
      lets_go = std::exchange(is_held_, false);
    } else if (!requests_.empty()) {
      is_writing_ = true;
      next = &requests_.front();
    }
  }
  if (next != nullptr) StartWrite(next);
  if (lets_go) RemoveHold();
}

void RankClient::Stream::OnWriteDone(bool ok) {
  {
    std::lock_guard lock(mutex_);
    is_writing_ = false;
    requests_.pop_front();
    if (!ok) is_over_ = true;
  }
  Advance();
}

void RankClient::Stream::OnReadDone(bool ok) {
  if (!ok) {
    {
      std::lock_guard lock(mutex_);
      is_over_ = true;
    }
    return Advance();
  }
  if (absl::Status status = Take(response_); !status.ok()) Cancel(status);
  StartRead(&response_);
}

void RankClient::Stream::OnDone(const grpc::Status& status) {
  std::unique_lock lock(mutex_);
  const absl::Status reason = reason_.ok() ? ToAbsl(status) : reason_;
  lock.unlock();
  (void)inbox_->Push({options_.rank, number_, RankLost{reason}});
  lock.lock();
  is_done_ = true;
  done_.notify_all();
}

void RankClient::Stream::WaitUntilDone() {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return is_done_; });
}

absl::Status RankClient::Stream::Take(const v1::RunResponse& response) {
  {
    std::lock_guard lock(mutex_);
    if (is_over_) return reason_;
  }
  switch (response.message_case()) {
    case v1::RunResponse::kHello:
      return TakeHello(response.hello());
    case v1::RunResponse::kResult:
      return TakeResult(response.result());
    case v1::RunResponse::kGroupFormed:
      return Put(RankGroupFormed{response.group_formed().epoch()});
    case v1::RunResponse::kFailed:
      return Put(RankFailed{response.failed().epoch(), response.failed().step_id(), response.failed().reason()});
    case v1::RunResponse::kLoadProgress:
      return Put(RankLoading{static_cast<int64_t>(response.load_progress().bytes_done()),
                             static_cast<int64_t>(response.load_progress().bytes_total())});
    case v1::RunResponse::MESSAGE_NOT_SET:
      break;
  }
  return absl::InternalError("the rank sent a response without a message that this build knows");
}

absl::Status RankClient::Stream::TakeHello(const v1::WorkerHello& message) {
  absl::StatusOr<RankHello> hello = DecodeRankHello(message);
  if (!hello.ok()) return hello.status();
  if (absl::Status status = CheckHello(*hello, options_); !status.ok()) return status;
  hello_ = *hello;
  return Put(*std::move(hello));
}

absl::Status RankClient::Stream::TakeResult(const v1::StepResult& message) {
  if (!hello_) return absl::InternalError("the rank sent a result before its hello");
  absl::StatusOr<StepResult> result =
      DecodeResult(message, int64_t{hello_->dp} * hello_->max_num_seqs, hello_->max_num_batched_tokens);
  if (!result.ok()) return result.status();
  return Put(*std::move(result));
}

absl::Status RankClient::Stream::Put(decltype(RankEvent::what) what) {
  if (inbox_->Push({options_.rank, number_, std::move(what)})) return absl::OkStatus();
  return absl::ResourceExhaustedError("the inbox of rank events is full; its reader is stuck");
}

RankClient::RankClient(RankClientOptions options, std::shared_ptr<RankInbox> inbox)
    : stream_(std::make_unique<Stream>(std::move(options), std::move(inbox))) {
  stream_->Start();
}

RankClient::~RankClient() {
  Cancel("the scheduler let go of the rank");
  stream_->WaitUntilDone();
}

uint64_t RankClient::stream() const { return stream_->number(); }

bool RankClient::FormGroup(const GroupOrder& order) {
  v1::RunRequest request;
  EncodeGroupOrder(order, *request.mutable_form_group());
  return stream_->Send(std::move(request));
}

bool RankClient::SendPlan(const StepPlan& plan) {
  v1::RunRequest request;
  EncodePlan(plan, *request.mutable_plan());
  return stream_->Send(std::move(request));
}

bool RankClient::Drain() {
  v1::RunRequest request;
  request.mutable_drain();
  return stream_->Send(std::move(request));
}

void RankClient::Cancel(const std::string& reason) { stream_->Cancel(absl::CancelledError(reason)); }

}  // namespace weir::worker
