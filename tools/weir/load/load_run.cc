#include "tools/weir/load/load_run.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "weir/v1/inference.grpc.pb.h"

namespace weir::tools {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kProgressInterval{100};

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// What the requests of a run have in common.  gRPC's threads write, the run's thread waits.
class Board {
 public:
  void Started() {
    const std::lock_guard lock(mutex_);
    ++progress_.num_running;
  }
  void Tokens(int64_t count) {
    const std::lock_guard lock(mutex_);
    progress_.num_output_tokens += count;
  }
  // Notifies under the lock: the run may end, and the board with it, as soon as the lock is free.
  void Ended(bool has_failed) {
    const std::lock_guard lock(mutex_);
    --progress_.num_running;
    ++progress_.num_ended;
    progress_.num_failed += has_failed ? 1 : 0;
    changed_.notify_all();
  }
  LoadProgress progress() const {
    const std::lock_guard lock(mutex_);
    return progress_;
  }
  // Until `is_enough` or the time.
  template <typename Condition>
  void WaitUntil(Clock::time_point time, Condition is_enough) {
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, time, [&] { return is_enough(progress_); });
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  LoadProgress progress_;
};

// One request from its start to OnDone.
class Stream final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Stream(const InferenceClient& client, v1::GenerateRequest request, double timeout_s, double due_s,
         Clock::time_point start, Board& board)
      : client_(client),
        request_(std::make_unique<v1::GenerateRequest>(std::move(request))),
        start_(start),
        board_(board) {
    record_.due_s = due_s;
    record_.num_prompt_tokens = request_->token_ids().ids_size();
    client.Authorize(call_);
    call_.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::milliseconds(static_cast<int64_t>(timeout_s * 1e3)));
  }

  void Start(v1::InferenceService::Stub& stub) {
    board_.Started();
    record_.sent_s = SecondsSince(start_);
    stub.async()->Generate(&call_, request_.get(), this);
    StartRead(&event_);
    StartCall();
  }

  // From any thread; an answer that has ended meanwhile counts as it ended.
  void Cancel() {
    was_asked_to_end_ = true;
    call_.TryCancel();
  }

  void OnReadDone(bool is_ok) override {
    if (!is_ok) return;
    if (event_.has_content_delta()) Take(event_.content_delta());
    if (event_.has_finished()) {
      is_finished_ = true;
      if (event_.finished().has_error()) record_.error = event_.finished().error().message();
    }
    StartRead(&event_);
  }

  void OnDone(const grpc::Status& status) override {
    record_.ended_s = SecondsSince(start_);
    if (!status.ok()) record_.error = std::string(client_.Explain(status).message());
    if (status.ok() && !is_finished_) record_.error = "the stream ended without a last message";
    record_.was_cancelled = was_asked_to_end_ && status.error_code() == grpc::StatusCode::CANCELLED;
    request_.reset();  // long prompts of thousands of requests would add up
    board_.Ended(!record_.error.empty());
  }

  // After the board has counted it as ended.
  RequestRecord TakeRecord() { return std::move(record_); }

 private:
  void Take(const v1::TextDelta& delta) {
    if (delta.token_ids().empty()) return;
    const double now_s = SecondsSince(start_);
    if (record_.last_token_s) record_.gaps_s.push_back(now_s - *record_.last_token_s);
    if (!record_.first_token_s) record_.first_token_s = now_s;
    record_.last_token_s = now_s;
    record_.num_output_tokens += delta.token_ids_size();
    board_.Tokens(delta.token_ids_size());
  }

  const InferenceClient& client_;
  std::unique_ptr<const v1::GenerateRequest> request_;  // until the end
  const Clock::time_point start_;
  Board& board_;
  grpc::ClientContext call_;
  v1::GenerateResponse event_;
  RequestRecord record_;
  bool is_finished_ = false;
  std::atomic<bool> was_asked_to_end_{false};
};

v1::GenerateRequest RequestOf(const PlannedRequest& planned, uint64_t index, const LoadRunOptions& options) {
  v1::GenerateRequest request;
  request.set_model(options.model);
  for (const uint32_t id : PromptIds(planned, options.seed, index, options.vocab_size, options.avoided_ids)) {
    request.mutable_token_ids()->add_ids(id);
  }
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stop_conditions()->set_max_tokens(static_cast<uint32_t>(planned.num_output_tokens));
  request.mutable_stop_conditions()->set_ignore_eos(true);
  return request;
}

class Run {
 public:
  Run(const InferenceClient& client, const std::vector<PlannedRequest>& plan, const LoadRunOptions& options,
      const std::function<void(const LoadProgress&)>& progress)
      : client_(client), plan_(plan), options_(options), report_(progress), stub_(client.channel()) {}

  std::vector<RequestRecord> Go() {
    for (size_t i = 0; i < plan_.size(); ++i) {
      v1::GenerateRequest request = RequestOf(plan_[i], i, options_);
      const double due_s = WaitForTurn(plan_[i]);
      if (IsStopped()) break;
      streams_.push_back(
          std::make_unique<Stream>(client_, std::move(request), options_.timeout_s, due_s, start_, board_));
      streams_.back()->Start(stub_);
    }
    WaitWhile([](const LoadProgress& p) { return p.num_running > 0; }, Clock::time_point::max());
    if (IsStopped()) CancelAll();
    std::vector<RequestRecord> records;
    for (const auto& stream : streams_) records.push_back(stream->TakeRecord());
    return records;
  }

 private:
  bool IsStopped() const { return options_.stop != nullptr && *options_.stop; }

  void CancelAll() {
    for (const auto& stream : streams_) stream->Cancel();
    while (board_.progress().num_running > 0) {
      board_.WaitUntil(Clock::now() + kProgressInterval, [](const LoadProgress& p) { return p.num_running == 0; });
    }
  }

  // When the request is due.
  double WaitForTurn(const PlannedRequest& planned) {
    if (options_.concurrency > 0) {
      const int64_t places = options_.concurrency;
      WaitWhile([places](const LoadProgress& p) { return p.num_running >= places; }, Clock::time_point::max());
      return SecondsSince(start_);
    }
    const auto due = start_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(planned.at_s));
    WaitWhile([](const LoadProgress&) { return true; }, due);
    return planned.at_s;
  }

  // Until a stop at the longest.
  template <typename Condition>
  void WaitWhile(Condition condition, Clock::time_point until) {
    while (!IsStopped() && condition(board_.progress()) && Clock::now() < until) {
      board_.WaitUntil(std::min(until, Clock::now() + kProgressInterval),
                       [&](const LoadProgress& p) { return !condition(p); });
      if (!report_ || Clock::now() < next_report_) continue;
      next_report_ = Clock::now() + kProgressInterval;
      LoadProgress progress = board_.progress();
      progress.elapsed_s = SecondsSince(start_);
      report_(progress);
    }
  }

  const InferenceClient& client_;
  const std::vector<PlannedRequest>& plan_;
  const LoadRunOptions& options_;
  const std::function<void(const LoadProgress&)>& report_;
  v1::InferenceService::Stub stub_;
  Board board_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point next_report_;
  std::vector<std::unique_ptr<Stream>> streams_;
};

}  // namespace

std::vector<RequestRecord> RunLoad(const InferenceClient& client, const std::vector<PlannedRequest>& plan,
                                   const LoadRunOptions& options,
                                   const std::function<void(const LoadProgress&)>& progress) {
  return Run(client, plan, options, progress).Go();
}

}  // namespace weir::tools
