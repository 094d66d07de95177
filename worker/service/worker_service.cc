#include "worker/service/worker_service.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <poll.h>
#include <spdlog/spdlog.h>

#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "channels/live_calls.h"
#include "weir/worker/v1/worker.grpc.pb.h"
#include "worker/communicator/socket_address.h"
#include "worker/service/handshake_codec.h"
#include "worker/service/plan_codec.h"
#include "worker/service/stream_limits.h"

namespace weir::worker {
namespace {

constexpr size_t kMaxUnread = 1024;  // responses that wait for a scheduler which does not read
constexpr std::chrono::milliseconds kProgressInterval{100};
constexpr std::chrono::seconds kShutdownPatience{2};

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

}  // namespace

// What all streams share.  gRPC may run a stream's reactions at once in the thread that calls one of its functions, so
// streams are written to and ended only with the mutex released.
class WorkerService::Core {
 public:
  explicit Core(std::string build) : build_(std::move(build)) {}

  void ReportLoading(int64_t bytes_done, int64_t bytes_total);
  void Serve(RankEngine* engine, RankHello hello);
  void Drain();
  void Stop();
  bool IsDrained() const {
    std::lock_guard lock(mutex_);
    return is_drained_;
  }

  // From streams.
  absl::Status OnHello(const std::shared_ptr<Stream>& stream, const v1::SchedulerHello& hello);
  absl::Status OnPlan(const std::shared_ptr<Stream>& stream, const v1::StepPlan& plan);
  absl::Status OnFormGroup(const std::shared_ptr<Stream>& stream, const v1::FormGroup& order);
  absl::Status OnDrain(const std::shared_ptr<Stream>& stream);
  void OnEnd(const Stream* stream, const std::string& reason);
  // The scheduler has nothing more to say.  True when that ends the stream: not while it is drained.
  bool OnLastRequest(const Stream* stream);
  void OnDrainDone() {
    std::lock_guard lock(mutex_);
    is_drained_ = true;
  }

 private:
  // Begins the engine's session for the present stream and returns the hello to write; mutex_ is held.
  v1::RunResponse Open();
  // OK when the stream is the present one and has got the rank's hello.
  absl::Status CheckOpen(const std::shared_ptr<Stream>& stream) const;

  const std::string build_;
  mutable std::mutex mutex_;
  std::shared_ptr<Stream> stream_;  // the present one
  RankEngine* engine_ = nullptr;    // null while weights are read
  RankHello hello_;
  PlanLimits limits_;
  uint64_t session_ = 0;  // of stream_ with the engine; 0: none yet
  std::chrono::steady_clock::time_point next_progress_;
  bool is_draining_ = false;
  bool is_drained_ = false;
};

// One call of Run.  Owns itself until gRPC is done with it; the engine may hold on to it longer.  gRPC's functions may
// run the reactions at once in the calling thread, so none is called with the mutex held.
class WorkerService::Stream : public grpc::ServerBidiReactor<v1::RunRequest, v1::RunResponse>,
                              public EngineListener,
                              public std::enable_shared_from_this<Stream> {
 public:
  static Stream* New(std::shared_ptr<Core> core, grpc::CallbackServerContext* context,
                     const channels::LiveCalls& live_calls) {
    auto stream = std::make_shared<Stream>(std::move(core), context);
    stream->live_.emplace(live_calls);
    stream->self_ = stream;
    stream->StartRead(&stream->request_);
    return stream.get();
  }
  Stream(std::shared_ptr<Core> core, grpc::CallbackServerContext* context)
      : core_(std::move(core)), context_(context) {}

  void Write(v1::RunResponse response);
  // Ends the stream when what waits is written.
  void End(const absl::Status& status);

  void OnGroupFormed(uint64_t epoch) override;
  void OnResult(const StepResult& result) override;
  void OnFailed(const RankFailed& failure) override;
  void OnDrained() override;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  absl::Status Take(const v1::RunRequest& request);
  void Advance();  // starts the next write, or finishes
  void Cancel();

  std::optional<channels::LiveCalls::Call> live_;  // until gRPC is done with the call
  const std::shared_ptr<Core> core_;
  grpc::CallbackServerContext* const context_;  // there until gRPC is done with the call
  std::shared_ptr<Stream> self_;
  v1::RunRequest request_;  // read into by gRPC

  std::mutex mutex_;
  std::deque<v1::RunResponse> responses_;  // the first is being written when is_writing_
  bool is_writing_ = false;
  bool is_broken_ = false;      // nothing can be written any more
  bool is_cancelling_ = false;  // a thread is in Cancel: the call may not finish meanwhile
  bool is_finished_ = false;
  bool is_drained_ = false;
  std::optional<grpc::Status> end_;  // finish with this when nothing waits
};

void WorkerService::Stream::Write(v1::RunResponse response) {
  bool is_full;
  {
    std::lock_guard lock(mutex_);
    if (end_ || is_broken_ || is_finished_) return;
    is_full = responses_.size() >= kMaxUnread;
    is_cancelling_ = is_full;
    if (!is_full) responses_.push_back(std::move(response));
  }
  if (is_full) Cancel();
  Advance();
}

// The write in progress waits for a scheduler that does not read: only cancelling the call ends it.
void WorkerService::Stream::Cancel() {
  context_->TryCancel();
  std::lock_guard lock(mutex_);
  is_cancelling_ = false;
}

void WorkerService::Stream::End(const absl::Status& status) {
  {
    std::lock_guard lock(mutex_);
    if (!end_) end_ = ToGrpc(status);
  }
  Advance();
}

void WorkerService::Stream::Advance() {
  const v1::RunResponse* next = nullptr;
  std::optional<grpc::Status> last;
  {
    std::lock_guard lock(mutex_);
    if (is_writing_ || is_finished_ || is_cancelling_) return;
    if (is_broken_) responses_.clear();
    if (!responses_.empty()) {
      is_writing_ = true;
      next = &responses_.front();
    } else if (end_) {
      is_finished_ = true;
      last = end_;
    }
  }
  if (next != nullptr) StartWrite(next);
  if (last) Finish(*last);
}

void WorkerService::Stream::OnWriteDone(bool ok) {
  {
    std::lock_guard lock(mutex_);
    is_writing_ = false;
    responses_.pop_front();
    if (!ok) is_broken_ = true;
  }
  if (!ok) core_->OnEnd(this, "the scheduler's stream broke");
  if (!ok) End(absl::UnavailableError("the stream broke"));
  Advance();
}

void WorkerService::Stream::OnReadDone(bool ok) {
  if (!ok) {
    if (core_->OnLastRequest(this)) End(absl::OkStatus());
    return;
  }
  if (absl::Status status = Take(request_); !status.ok()) {
    core_->OnEnd(this, std::string(status.message()));
    return End(status);
  }
  StartRead(&request_);
}

void WorkerService::Stream::OnCancel() {
  {
    std::lock_guard lock(mutex_);
    is_broken_ = true;
  }
  core_->OnEnd(this, "the scheduler cancelled its stream");
  End(absl::CancelledError("cancelled"));
}

void WorkerService::Stream::OnDone() {
  bool is_drained;
  {
    std::lock_guard lock(mutex_);
    is_drained = is_drained_;
  }
  if (is_drained) core_->OnDrainDone();
  live_.reset();
  self_.reset();
}

absl::Status WorkerService::Stream::Take(const v1::RunRequest& request) {
  switch (request.message_case()) {
    case v1::RunRequest::kHello:
      return core_->OnHello(shared_from_this(), request.hello());
    case v1::RunRequest::kPlan:
      return core_->OnPlan(shared_from_this(), request.plan());
    case v1::RunRequest::kFormGroup:
      return core_->OnFormGroup(shared_from_this(), request.form_group());
    case v1::RunRequest::kDrain:
      return core_->OnDrain(shared_from_this());
    case v1::RunRequest::MESSAGE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("a request without a message that this build knows");
}

void WorkerService::Stream::OnGroupFormed(uint64_t epoch) {
  v1::RunResponse response;
  response.mutable_group_formed()->set_epoch(epoch);
  Write(std::move(response));
}

void WorkerService::Stream::OnResult(const StepResult& result) {
  v1::RunResponse response;
  EncodeResult(result, *response.mutable_result());
  Write(std::move(response));
}

void WorkerService::Stream::OnFailed(const RankFailed& failure) {
  v1::RunResponse response;
  response.mutable_failed()->set_epoch(failure.epoch);
  response.mutable_failed()->set_step_id(failure.step_id);
  response.mutable_failed()->set_reason(failure.reason);
  Write(std::move(response));
}

void WorkerService::Stream::OnDrained() {
  {
    std::lock_guard lock(mutex_);
    is_drained_ = true;
  }
  End(absl::OkStatus());
}

// ---- Core ----

void WorkerService::Core::ReportLoading(int64_t bytes_done, int64_t bytes_total) {
  std::shared_ptr<Stream> stream;
  {
    std::lock_guard lock(mutex_);
    const auto now = std::chrono::steady_clock::now();
    if (stream_ == nullptr || now < next_progress_) return;
    next_progress_ = now + kProgressInterval;
    stream = stream_;
  }
  v1::RunResponse response;
  response.mutable_load_progress()->set_bytes_done(static_cast<uint64_t>(bytes_done));
  response.mutable_load_progress()->set_bytes_total(static_cast<uint64_t>(bytes_total));
  stream->Write(std::move(response));
}

void WorkerService::Core::Serve(RankEngine* engine, RankHello hello) {
  std::shared_ptr<Stream> stream;
  v1::RunResponse response;
  {
    std::lock_guard lock(mutex_);
    engine_ = engine;
    hello_ = std::move(hello);
    hello_.build = build_;
    limits_ = LimitsFor(hello_.dp, hello_.max_num_seqs, hello_.max_model_len, hello_.num_blocks);
    stream = stream_;
    if (stream != nullptr) response = Open();
  }
  if (stream != nullptr) stream->Write(std::move(response));
}

v1::RunResponse WorkerService::Core::Open() {
  session_ = engine_->BeginSession(stream_);
  v1::RunResponse response;
  EncodeRankHello(hello_, *response.mutable_hello());
  return response;
}

absl::Status WorkerService::Core::OnHello(const std::shared_ptr<Stream>& stream, const v1::SchedulerHello& hello) {
  std::shared_ptr<Stream> before;
  std::optional<v1::RunResponse> response;
  {
    std::lock_guard lock(mutex_);
    if (stream == stream_) return absl::InvalidArgumentError("a second hello on one stream");
    if (is_draining_) return absl::UnavailableError("the rank is draining");
    if (hello.build() != build_) {
      return absl::FailedPreconditionError(absl::StrCat("the scheduler is of build ", hello.build(),
                                                        ", this rank of build ", build_, "; run both from one build"));
    }
    before = std::exchange(stream_, stream);
    session_ = 0;
    if (engine_ != nullptr) response = Open();
  }
  spdlog::info("a scheduler has connected{}", before != nullptr ? ", in place of the one before" : "");
  if (response) stream->Write(*std::move(response));
  if (before != nullptr) before->End(absl::AbortedError("another scheduler has taken over this rank"));
  return absl::OkStatus();
}

absl::Status WorkerService::Core::CheckOpen(const std::shared_ptr<Stream>& stream) const {
  if (stream == stream_ && session_ != 0) return absl::OkStatus();
  if (stream == stream_) return absl::InvalidArgumentError("an order before the rank's hello");
  return absl::InvalidArgumentError("the first message of a stream must be a hello");
}

absl::Status WorkerService::Core::OnPlan(const std::shared_ptr<Stream>& stream, const v1::StepPlan& message) {
  PlanLimits limits;
  uint64_t session;
  {
    std::lock_guard lock(mutex_);
    if (absl::Status status = CheckOpen(stream); !status.ok()) return status;
    limits = limits_;
    session = session_;
  }
  absl::StatusOr<StepPlan> plan = DecodePlan(message, limits);
  return plan.ok() ? engine_->Run(session, *std::move(plan)) : plan.status();
}

absl::Status WorkerService::Core::OnFormGroup(const std::shared_ptr<Stream>& stream, const v1::FormGroup& message) {
  uint64_t session;
  {
    std::lock_guard lock(mutex_);
    if (absl::Status status = CheckOpen(stream); !status.ok()) return status;
    session = session_;
  }
  absl::StatusOr<GroupOrder> order = DecodeGroupOrder(message);
  return order.ok() ? engine_->FormGroup(session, *std::move(order)) : order.status();
}

absl::Status WorkerService::Core::OnDrain(const std::shared_ptr<Stream>& stream) {
  std::lock_guard lock(mutex_);
  if (absl::Status status = CheckOpen(stream); !status.ok()) return status;
  is_draining_ = true;
  return engine_->Drain(session_);
}

void WorkerService::Core::OnEnd(const Stream* stream, const std::string& reason) {
  std::shared_ptr<Stream> ended;  // released after the mutex
  std::lock_guard lock(mutex_);
  if (stream != stream_.get()) return;
  spdlog::log(is_draining_ ? spdlog::level::info : spdlog::level::warn, "the scheduler is gone: {}", reason);
  if (session_ != 0) engine_->EndSession(session_, reason);
  session_ = 0;
  ended = std::move(stream_);
  stream_ = nullptr;
  if (is_draining_) is_drained_ = true;  // nobody is left to finish for
}

bool WorkerService::Core::OnLastRequest(const Stream* stream) {
  {
    std::lock_guard lock(mutex_);
    if (stream == stream_.get() && is_draining_ && session_ != 0) return false;
  }
  OnEnd(stream, "the scheduler closed its stream");
  return true;
}

void WorkerService::Core::Drain() {
  std::lock_guard lock(mutex_);
  is_draining_ = true;
  if (session_ == 0) is_drained_ = true;
  // A full queue cannot take the order; then what waits is not finished.
  if (session_ != 0 && !engine_->Drain(session_).ok()) is_drained_ = true;
}

void WorkerService::Core::Stop() {
  std::shared_ptr<Stream> last;
  {
    std::lock_guard lock(mutex_);
    is_draining_ = true;
    if (session_ != 0) engine_->EndSession(session_, "the rank stops");
    session_ = 0;
    last = std::exchange(stream_, nullptr);
  }
  if (last != nullptr) last->End(absl::UnavailableError("the rank stops"));
}

// ---- the server ----

class WorkerService::Endpoint : public v1::WorkerService::CallbackService {
 public:
  explicit Endpoint(std::shared_ptr<Core> core) : core_(std::move(core)) {}
  ~Endpoint() override {
    core_->Stop();
    if (server_ != nullptr) channels::Close(*server_, live_calls_, kShutdownPatience);
  }

  absl::Status Listen(const std::string& address) {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.SetMaxSendMessageSize(kMaxMessageBytes);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 16);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kKeepaliveMs / 2);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return absl::UnavailableError(absl::StrCat("cannot listen at ", address));
    server_->GetHealthCheckService()->SetServingStatus(false);
    return absl::OkStatus();
  }
  void SetServing() { server_->GetHealthCheckService()->SetServingStatus(true); }

 private:
  grpc::ServerBidiReactor<v1::RunRequest, v1::RunResponse>* Run(grpc::CallbackServerContext* context) override {
    return Stream::New(core_, context, live_calls_);
  }

  const std::shared_ptr<Core> core_;
  channels::LiveCalls live_calls_;
  std::unique_ptr<grpc::Server> server_;
};

namespace {

// gRPC would take a Unix socket away from the process that listens there.
bool SomebodyListens(const SocketAddress& address) {
  const absl::StatusOr<FileDescriptor> probe = StartConnect(address);
  if (!probe.ok()) return false;
  pollfd entry{probe->get(), POLLOUT, 0};
  return ::poll(&entry, 1, 100) == 1 && ConnectError(*probe).ok();
}

}  // namespace

WorkerService::WorkerService() = default;
WorkerService::~WorkerService() = default;

absl::StatusOr<std::unique_ptr<WorkerService>> WorkerService::Start(const WorkerServiceOptions& options) {
  const absl::StatusOr<SocketAddress> address = ParseSocketAddress(options.address);
  if (!address.ok()) return address.status();
  if (address->is_unix && SomebodyListens(*address)) {
    return absl::UnavailableError(absl::StrCat("another process listens at ", options.address));
  }
  std::unique_ptr<WorkerService> service(new WorkerService);
  service->core_ = std::make_shared<Core>(options.build);
  service->endpoint_ = std::make_unique<Endpoint>(service->core_);
  if (absl::Status status = service->endpoint_->Listen(options.address); !status.ok()) return status;
  return service;
}

void WorkerService::ReportLoading(int64_t bytes_done, int64_t bytes_total) {
  core_->ReportLoading(bytes_done, bytes_total);
}

void WorkerService::Serve(RankEngine* engine, RankHello hello) {
  core_->Serve(engine, std::move(hello));
  endpoint_->SetServing();
}

void WorkerService::Drain() { core_->Drain(); }
bool WorkerService::IsDrained() const { return core_->IsDrained(); }

}  // namespace weir::worker
