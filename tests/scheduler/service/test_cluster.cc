#include "tests/scheduler/service/test_cluster.h"

#include <grpcpp/grpcpp.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <cstdlib>
#include <filesystem>
#include <thread>
#include <utility>

#include "scheduler/service/rank_streams.h"
#include "scheduler/service/scheduler_service.h"
#include "weir/scheduler/v1/scheduler.grpc.pb.h"

namespace weir::scheduler {

using Clock = std::chrono::steady_clock;

bool WaitFor(const std::function<bool()>& condition, std::chrono::milliseconds patience) {
  const auto deadline = Clock::now() + patience;
  while (!condition()) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

// ---- gateway ----

class TestGateway::Client {
 public:
  explicit Client(const std::string& target) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // a small window: who does not read is noticed soon
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 4096);
    stub_ =
        v1::SchedulerService::NewStub(grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments));
    stream_ = stub_->Serve(&context_);
    v1::ServeRequest hello;
    hello.mutable_hello()->set_gateway_name("test");
    stream_->Write(hello);
    reader_ = std::thread([this] { Read(); });
  }

  ~Client() {
    context_.TryCancel();
    {
      std::lock_guard lock(mutex_);
      reads_ = true;
    }
    reader_.join();
  }

  void Write(const v1::ServeRequest& request) { stream_->Write(request); }

  void StopReading() {
    std::lock_guard lock(mutex_);
    reads_ = false;
  }

  TestAnswer Answer(uint64_t number) {
    std::lock_guard lock(mutex_);
    return answers_[number];
  }
  bool is_over() {
    std::lock_guard lock(mutex_);
    return is_over_;
  }
  std::string status() {
    std::lock_guard lock(mutex_);
    return status_;
  }

 private:
  bool MayRead() {
    std::lock_guard lock(mutex_);
    return reads_;
  }

  void Read() {
    for (v1::ServeResponse response; stream_->Read(&response);) {
      while (!MayRead()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      std::lock_guard lock(mutex_);
      Take(response.output());
    }
    const grpc::Status status = stream_->Finish();
    std::lock_guard lock(mutex_);
    is_over_ = true;
    status_ = std::to_string(status.error_code()) + " " + status.error_message();
  }

  void Take(const v1::StepOutput& output) {
    for (const uint64_t number : output.admitted()) answers_[number].is_admitted = true;
    for (const v1::TokenOutput& token : output.tokens()) {
      TestAnswer& answer = answers_[token.stream_request_id()];
      if (answer.first_index < 0) answer.first_index = static_cast<int>(token.index());
      answer.tokens.push_back(static_cast<int32_t>(token.token().token_id()));
      if (token.token().has_logprob()) answer.logprobs.push_back(token.token().logprob());
    }
    for (const v1::RequestEnd& end : output.ends()) answers_[end.stream_request_id()].end = EndOf(end);
  }

  static TestEnd EndOf(const v1::RequestEnd& end) {
    std::string reason = v1::EndReason_Name(end.reason()).substr(sizeof "END_REASON_" - 1);
    if (end.has_refusal()) {
      reason += " " + v1::RefusalReason_Name(end.refusal().reason()).substr(sizeof "REFUSAL_REASON_" - 1);
    }
    const v1::WaitSplit& wait = end.wait();
    return {.reason = reason,
            .error = end.error(),
            .needed = end.refusal().needed(),
            .limit = end.refusal().limit(),
            .retry_after_ms = end.refusal().retry_after_ms(),
            .num_output_tokens = static_cast<int>(end.num_output_tokens()),
            .num_cached_tokens = static_cast<int>(end.num_cached_tokens()),
            .num_worker_losses = static_cast<int>(end.num_worker_losses()),
            .wait_us = wait.queued_for_share_us() + wait.queued_for_blocks_us() + wait.queued_for_slots_us() +
                       wait.queued_for_workers_us() + wait.prefill_us() + wait.decode_us() + wait.preempted_us() +
                       wait.recovering_us()};
  }

  std::unique_ptr<v1::SchedulerService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ServeRequest, v1::ServeResponse>> stream_;
  std::thread reader_;
  std::mutex mutex_;
  bool reads_ = true;
  bool is_over_ = false;
  std::string status_;
  std::map<uint64_t, TestAnswer> answers_;
};

TestGateway::TestGateway(const std::string& target) : client_(std::make_shared<Client>(target)) {}
TestGateway::~TestGateway() = default;

uint64_t TestGateway::Submit(const TestRequest& request) {
  SubmitAs(next_, request);
  return next_++;
}

void TestGateway::SubmitAs(uint64_t number, const TestRequest& request) {
  v1::ServeRequest message;
  v1::Submit& submit = *message.mutable_submit();
  submit.set_stream_request_id(number);
  submit.set_request_id(request.name);
  for (const std::string& name : request.tenant) submit.add_tenant_path(name);
  for (const int32_t token : request.prompt) submit.add_prompt_token_ids(static_cast<uint32_t>(token));
  for (const int32_t token : request.resumed) submit.add_resumed_token_ids(static_cast<uint32_t>(token));
  for (const int32_t token : request.stop) submit.add_stop_token_ids(static_cast<uint32_t>(token));
  submit.set_max_tokens(static_cast<uint32_t>(request.max_tokens));
  submit.set_cache_namespace_key(request.cache_key);
  submit.set_constraint(request.constraint);
  if (request.deadline_ms) submit.set_deadline_ms(*request.deadline_ms);
  submit.mutable_sampling()->set_wants_logprob(request.wants_logprob);
  client_->Write(message);
}

void TestGateway::Cancel(uint64_t number, bool is_stop) {
  v1::ServeRequest message;
  message.mutable_cancel()->set_stream_request_id(number);
  message.mutable_cancel()->set_is_stop(is_stop);
  client_->Write(message);
}

void TestGateway::StopReading() { client_->StopReading(); }
TestAnswer TestGateway::Answer(uint64_t number) const { return client_->Answer(number); }
bool TestGateway::is_over() const { return client_->is_over(); }
std::string TestGateway::status() const { return client_->status(); }
bool TestGateway::WaitFor(const std::function<bool()>& condition) const { return scheduler::WaitFor(condition); }

TestAnswer TestGateway::WaitForEnd(uint64_t number) const {
  scheduler::WaitFor([&] { return Answer(number).end.has_value() || is_over(); });
  TestAnswer answer = Answer(number);
  if (!answer.end) answer.end = TestEnd{.reason = "no end within 20 s"};
  return answer;
}

// ---- cluster ----

struct TestCluster::Process {
  Process(const ClusterOptions& options, const std::vector<std::string>& addresses)
      : metrics(registry, static_cast<int32_t>(addresses.size()), options.build),
        inbox(Inbox::Bounds{}),
        ranks(addresses, options.build, &inbox),
        loop(WithAddresses(options.loop, addresses), &inbox, &ranks, &board, &metrics) {
    std::string error;
    server = SchedulerServer::Start(
        {.build = options.build, .listen = "127.0.0.1:0", .max_output_bytes = options.max_output_bytes}, &inbox, &board,
        error);
    thread = std::thread([this] {
      const bool finished = loop.Run();
      std::lock_guard lock(mutex);
      has_finished = finished;
      is_drained = true;
    });
  }
  ~Process() {
    inbox.Push(DrainOrder{.patience_us = 0});
    thread.join();
  }
  static EventLoopOptions WithAddresses(EventLoopOptions options, const std::vector<std::string>& addresses) {
    options.group.addresses = addresses;
    return options;
  }

  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  SchedulerMetrics metrics;
  ReplicaBoard board;
  Inbox inbox;
  RankStreams ranks;
  EventLoop loop;
  std::unique_ptr<SchedulerServer> server;
  std::mutex mutex;
  bool has_finished = false;
  bool is_drained = false;
  std::thread thread;
};

TestCluster::TestCluster(ClusterOptions options) : options_(std::move(options)) {
  char directory[] = "/tmp/weir-scheduler-test-XXXXXX";
  directory_ = mkdtemp(directory);
  for (int i = 0; i < options_.tp * options_.dp; ++i) {
    FakeRankOptions rank = options_.rank;
    rank.rank = i;
    rank.tp = options_.tp;
    rank.dp = options_.dp;
    if (options_.adapt) options_.adapt(rank);
    ranks_.push_back(std::make_unique<FakeRank>(rank, directory_ + "/rank" + std::to_string(i)));
  }
  StartScheduler();
}

TestCluster::~TestCluster() {
  process_ = nullptr;
  ranks_.clear();
  std::filesystem::remove_all(directory_);
}

void TestCluster::StartScheduler() {
  std::vector<std::string> addresses;
  for (const auto& rank : ranks_) addresses.push_back(rank->address());
  process_ = std::make_unique<Process>(options_, addresses);
}

void TestCluster::BeginDrain(int64_t patience_ms) {
  process_->inbox.Push(DrainOrder{.patience_us = patience_ms * 1000});
}

bool TestCluster::IsDrained() const {
  std::lock_guard lock(process_->mutex);
  return process_->is_drained;
}

bool TestCluster::DrainScheduler(int64_t patience_ms) {
  BeginDrain(patience_ms);
  WaitFor([this] { return IsDrained(); });
  process_->server->Shutdown(1000);
  return process_->has_finished;
}

std::string TestCluster::target() const { return "127.0.0.1:" + std::to_string(process_->server->port()); }
ReplicaView TestCluster::view() const { return process_->board.Read(); }
bool TestCluster::WaitUntilReady() const {
  return WaitFor([this] { return view().is_ready; });
}

std::string TestCluster::metrics() const {
  return prometheus::TextSerializer().Serialize(process_->registry->Collect());
}

double TestCluster::metric(const std::string& series) const {
  const std::string text = "\n" + metrics();
  const size_t at = text.find("\n" + series + " ");
  return at == std::string::npos ? -1 : std::strtod(text.c_str() + at + 2 + series.size(), nullptr);
}

}  // namespace weir::scheduler
