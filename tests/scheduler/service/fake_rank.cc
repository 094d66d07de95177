#include "tests/scheduler/service/fake_rank.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "weir/worker/v1/worker.grpc.pb.h"

namespace weir::scheduler {

using worker::v1::RunRequest;
using worker::v1::RunResponse;
using Stream = grpc::ServerReaderWriter<RunResponse, RunRequest>;

int32_t FakeNextToken(std::span<const int32_t> tokens) {
  uint64_t hash = 0x9e3779b97f4a7c15u;
  for (const int32_t token : tokens) hash = (hash ^ static_cast<uint32_t>(token)) * 0xff51afd7ed558ccdu;
  return static_cast<int32_t>((hash >> 20) % kFakeVocabSize);
}

std::vector<int32_t> FakeOutput(std::vector<int32_t> prompt, int n) {
  const auto num_prompt = static_cast<std::ptrdiff_t>(prompt.size());
  for (int i = 0; i < n; ++i) prompt.push_back(FakeNextToken(prompt));
  return {prompt.begin() + num_prompt, prompt.end()};
}

class FakeRank::Service final : public worker::v1::WorkerService::Service {
 public:
  explicit Service(const FakeRankOptions& options) : options_(options) {}

  grpc::Status Run(grpc::ServerContext* context, Stream* stream) override {
    RunRequest request;
    if (!stream->Read(&request) || !request.has_hello()) return grpc::Status::CANCELLED;
    if (request.hello().build() != options_.build) {
      return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "another build");
    }
    std::unique_lock lock(mutex_);
    if (context_ != nullptr) context_->TryCancel();
    changed_.wait(lock, [this] { return context_ == nullptr; });  // the stream before has ended
    context_ = context;
    stream_ = stream;
    requests_.clear();
    is_reading_ = true;
    lock.unlock();
    std::thread reader([&] { Read(stream); });
    Work(context);
    reader.join();
    lock.lock();
    context_ = nullptr;
    stream_ = nullptr;
    changed_.notify_all();
    return grpc::Status::OK;
  }

  void Say(const RunResponse& message) {
    std::lock_guard lock(mutex_);
    if (stream_ != nullptr) stream_->Write(message);
  }

  template <typename F>
  auto Locked(F f) {
    std::lock_guard lock(mutex_);
    changed_.notify_all();
    return f(*this);
  }

  // Guarded by mutex_.
  bool hangs = false;
  int64_t step_us = 0;
  std::function<bool(RunResponse&)> alter;
  int num_steps = 0;
  int num_epochs = 0;
  int num_ahead = 0;
  uint64_t epoch = 0;
  std::string error;
  std::unique_ptr<grpc::Server> server;

 private:
  struct Slot {
    std::vector<int32_t> tokens;
    int32_t num_computed = 0;
  };

  void Read(Stream* stream) {
    for (RunRequest request; stream->Read(&request);) {
      std::lock_guard lock(mutex_);
      requests_.push_back(request);
      changed_.notify_all();
    }
    std::lock_guard lock(mutex_);
    is_reading_ = false;
    changed_.notify_all();
  }

  void Work(grpc::ServerContext* context) {
    std::unique_lock lock(mutex_);
    bool has_said_hello = false;
    while (is_reading_ && !context->IsCancelled()) {
      if (hangs || (has_said_hello && requests_.empty())) {
        changed_.wait_for(lock, std::chrono::milliseconds(20));
      } else if (!has_said_hello) {
        stream_->Write(Hello());
        has_said_hello = true;
      } else {
        const RunRequest request = requests_.front();
        requests_.pop_front();
        if (request.has_form_group()) Form(request.form_group());
        if (request.has_plan()) RunPlan(request.plan(), lock);
      }
    }
  }

  RunResponse Hello() const {
    RunResponse response;
    worker::v1::WorkerHello& hello = *response.mutable_hello();
    hello.set_build(options_.build);
    hello.set_manifest_hash(options_.manifest_hash);
    hello.set_rank(static_cast<uint32_t>(options_.rank));
    hello.set_tensor_parallel_size(static_cast<uint32_t>(options_.tp));
    hello.set_data_parallel_size(static_cast<uint32_t>(options_.dp));
    hello.set_num_blocks(static_cast<uint64_t>(options_.num_blocks));
    hello.set_block_size(static_cast<uint32_t>(options_.block_size));
    hello.set_max_num_seqs(static_cast<uint32_t>(options_.max_num_seqs));
    hello.set_max_num_batched_tokens(static_cast<uint32_t>(options_.max_num_batched_tokens));
    hello.set_max_model_len(static_cast<uint64_t>(options_.max_model_len));
    hello.set_vocab_size(kFakeVocabSize);
    hello.add_eos_token_ids(1);
    hello.set_device("fake");
    hello.set_pid(options_.pid);
    return response;
  }

  void Form(const worker::v1::FormGroup& form) {
    if (form.addresses_size() != options_.tp * options_.dp) Complain("a group of another size");
    if (form.epoch() <= epoch) Complain("an epoch that does not follow");
    epoch = form.epoch();
    ++num_epochs;
    slots_.clear();
    RunResponse response;
    response.mutable_group_formed()->set_epoch(epoch);
    stream_->Write(response);
  }

  void RunPlan(const worker::v1::StepPlan& plan, std::unique_lock<std::mutex>& lock) {
    if (plan.epoch() != epoch) return;
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(step_us));
    lock.lock();
    RunResponse response;
    worker::v1::StepResult& result = *response.mutable_result();
    result.set_step_id(plan.step_id());
    result.set_epoch(plan.epoch());
    result.set_total_us(static_cast<uint64_t>(step_us));
    result.set_plan_hash(std::hash<std::string>()(plan.SerializeAsString()));
    result.add_expert_loads(static_cast<uint64_t>(plan.work_size()));
    for (const worker::v1::ReleasedSlot& released : plan.released()) {
      if (IsMine(released.dp_rank())) slots_.erase(released.slot());
    }
    for (const worker::v1::SequenceWork& work : plan.work()) {
      if (IsMine(work.dp_rank())) RunWork(work, result);
    }
    if (options_.rank % options_.tp != 0) result.clear_sequences();
    ++num_steps;
    for (const RunRequest& waiting : requests_) num_ahead += waiting.has_plan() ? 1 : 0;
    if (options_.sends_results && (!alter || alter(response))) stream_->Write(response);
  }

  bool IsMine(uint32_t dp_rank) const { return static_cast<int32_t>(dp_rank) == options_.rank / options_.tp; }

  void RunWork(const worker::v1::SequenceWork& work, worker::v1::StepResult& result) {
    if (work.has_setup()) {
      slots_[work.slot()] = {};
      slots_[work.slot()].tokens.assign(work.setup().token_ids().begin(), work.setup().token_ids().end());
      slots_[work.slot()].num_computed = static_cast<int32_t>(work.first_position());  // found in the cache
    }
    Slot& slot = slots_[work.slot()];
    const auto first = static_cast<int32_t>(work.first_position());
    const int32_t end = first + static_cast<int32_t>(work.num_tokens());
    if (first != slot.num_computed) Complain("a position left out or computed twice");
    if (end > static_cast<int32_t>(slot.tokens.size())) return Complain("a row of a token that is not known");
    for (int i = 0; i < work.token_ids_size(); ++i) {
      if (static_cast<int32_t>(work.token_ids(i)) != slot.tokens[first + i]) Complain("a token that is another's");
    }
    slot.num_computed = end;
    worker::v1::SequenceResult& sequence = *result.add_sequences();
    sequence.set_slot(work.slot());
    sequence.set_dp_rank(work.dp_rank());
    if (!work.samples()) return;
    if (end != static_cast<int32_t>(slot.tokens.size())) Complain("sampling in the middle");
    const int32_t token = FakeNextToken(slot.tokens);
    slot.tokens.push_back(token);
    sequence.mutable_sampled()->set_token_id(static_cast<uint32_t>(token));
    sequence.mutable_sampled()->set_logprob(-0.5f);
  }

  void Complain(const std::string& what) {
    if (error.empty()) error = "rank " + std::to_string(options_.rank) + ": " + what;
  }

  const FakeRankOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  grpc::ServerContext* context_ = nullptr;
  Stream* stream_ = nullptr;
  std::deque<RunRequest> requests_;
  bool is_reading_ = false;
  std::map<uint32_t, Slot> slots_;
};

FakeRank::FakeRank(FakeRankOptions options, std::string socket_path)
    : options_(std::move(options)), socket_path_(std::move(socket_path)) {
  Start();
}

FakeRank::~FakeRank() { Kill(); }

std::string FakeRank::address() const { return "unix:" + socket_path_; }

void FakeRank::Start() {
  service_ = std::make_unique<Service>(options_);
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address(), grpc::InsecureServerCredentials());
  builder.RegisterService(service_.get());
  service_->server = builder.BuildAndStart();
}

void FakeRank::Kill() {
  if (service_ == nullptr) return;
  service_->server->Shutdown(std::chrono::system_clock::now());
  service_->server->Wait();
  service_ = nullptr;
}

void FakeRank::Hang(bool hangs) {
  service_->Locked([&](Service& s) { s.hangs = hangs; });
}
void FakeRank::SetStepTime(int64_t us) {
  service_->Locked([&](Service& s) { s.step_us = us; });
}
void FakeRank::Alter(std::function<bool(RunResponse&)> alter) {
  service_->Locked([&](Service& s) { s.alter = std::move(alter); });
}
void FakeRank::Say(const RunResponse& message) { service_->Say(message); }

int FakeRank::num_steps() const {
  return service_->Locked([](Service& s) { return s.num_steps; });
}
int FakeRank::num_epochs() const {
  return service_->Locked([](Service& s) { return s.num_epochs; });
}
uint64_t FakeRank::epoch() const {
  return service_->Locked([](Service& s) { return s.epoch; });
}
int FakeRank::num_steps_planned_ahead() const {
  return service_->Locked([](Service& s) { return s.num_ahead; });
}
std::string FakeRank::error() const {
  return service_->Locked([](Service& s) { return s.error; });
}

}  // namespace weir::scheduler
