#include "worker/service/rank_engine.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace weir::worker {

namespace {

// A rank knows slots; the scheduler, which gave them away, logs the request's own id with the same reason.
void LogTrouble(const StepResult& result) {
  for (const SequenceResult& sequence : result.sequences) {
    if (!sequence.error.empty()) {
      spdlog::warn("step {}, slot {}: not run: {}", result.step_id, sequence.slot, sequence.error);
    } else if (sequence.has_sampled && !sequence.sampled.is_finite) {
      spdlog::warn("step {}, slot {}: the logits are not finite: no token", result.step_id, sequence.slot);
    }
  }
  spdlog::debug("step {}: {} sequences, {} us, {} of them waiting for other ranks", result.step_id,
                result.sequences.size(), result.timings.total_us, result.timings.communication_us);
}

}  // namespace

SocketGroupOptions SocketGroupOptionsOf(const GroupOrder& order, int32_t rank, const std::atomic<bool>& cancelled) {
  SocketGroupOptions options;
  options.rank = rank;
  options.addresses = order.addresses;
  options.epoch = order.epoch;
  options.token = order.token;
  options.deadline = order.collective_deadline;
  options.connect_deadline = order.connect_deadline;
  options.cancelled = &cancelled;
  return options;
}

RankEngine::RankEngine(std::unique_ptr<Rank> rank, int world_size, FormCommunicator form_communicator)
    : rank_(std::move(rank)),
      world_size_(world_size),
      form_communicator_(std::move(form_communicator)),
      telling_thread_([this] { TellLoop(); }),
      thread_([this] { Loop(); }) {}

RankEngine::~RankEngine() {
  {
    std::lock_guard lock(mutex_);
    is_stopping_ = true;
    AbortWork("the process ends");
    changed_.notify_all();
  }
  thread_.join();
  {
    std::lock_guard lock(outcomes_mutex_);
    is_telling_over_ = true;
    outcomes_changed_.notify_all();
  }
  telling_thread_.join();
  (void)rank_->Reform(nullptr, epoch_ + 1);  // lets go of the communicator, which goes before the rank
}

uint64_t RankEngine::BeginSession(std::shared_ptr<EngineListener> listener) {
  std::lock_guard lock(mutex_);
  orders_.clear();
  AbortWork("another scheduler has taken over");
  listener_ = std::move(listener);
  return ++session_;
}

void RankEngine::EndSession(uint64_t session, const std::string& reason) {
  std::lock_guard lock(mutex_);
  if (session != session_) return;
  orders_.clear();
  AbortWork(reason);
  listener_ = nullptr;
}

absl::Status RankEngine::Run(uint64_t session, StepPlan plan) { return Push(session, std::move(plan)); }

absl::Status RankEngine::FormGroup(uint64_t session, GroupOrder order) {
  {
    std::lock_guard lock(mutex_);
    if (session != session_) return absl::OkStatus();
    std::erase_if(orders_, [](const Order& waiting) { return !std::holds_alternative<DrainOrder>(waiting.what); });
    AbortWork(absl::StrCat("epoch ", order.epoch, " begins"));
  }
  return Push(session, std::move(order));
}

absl::Status RankEngine::Drain(uint64_t session) { return Push(session, DrainOrder{}); }

std::chrono::milliseconds RankEngine::BusyFor() const {
  const Clock::rep since = busy_since_;
  if (since == 0) return std::chrono::milliseconds(0);
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch() -
                                                               Clock::duration(since));
}

absl::Status RankEngine::Push(uint64_t session, std::variant<StepPlan, GroupOrder, DrainOrder> what) {
  std::lock_guard lock(mutex_);
  if (session != session_) return absl::OkStatus();
  if (orders_.size() >= kMaxOrders) {
    return absl::ResourceExhaustedError(
        absl::StrCat(kMaxOrders, " orders wait already; a scheduler must wait for results before it plans further"));
  }
  orders_.push_back({session, std::move(what)});
  changed_.notify_all();
  return absl::OkStatus();
}

void RankEngine::AbortCommunicator(const std::string& reason) {
  std::lock_guard lock(mutex_);
  if (communicator_ != nullptr) communicator_->Abort(reason);
}

void RankEngine::AbortWork(const std::string& reason) {
  forming_cancelled_ = true;
  if (communicator_ != nullptr) communicator_->Abort(reason);
}

void RankEngine::Loop() {
  for (Order order; Take(order);) {
    std::visit([&](const auto& what) { Do(what, order.session); }, order.what);
    busy_since_ = 0;
  }
}

bool RankEngine::Take(Order& order) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return is_stopping_ || !orders_.empty(); });
  if (is_stopping_) return false;
  order = std::move(orders_.front());
  orders_.pop_front();
  busy_since_ = Clock::now().time_since_epoch().count();
  // From here on a later order cancels this one.
  forming_cancelled_ = false;
  return true;
}

// Plans of another epoch, and those that were under way when an epoch failed, are dropped: the scheduler knows.
void RankEngine::Do(const StepPlan& plan, uint64_t session) {
  if (is_drained_ || !is_formed_ || session != epoch_session_ || plan.epoch != epoch_) return;
  absl::StatusOr<StepResult> result = rank_->Run(plan);
  if (!result.ok()) {
    // The others may wait for this rank in a collective; they shall not wait for their deadline.
    AbortCommunicator(std::string(result.status().message()));
    return Fail({.epoch = plan.epoch, .step_id = plan.step_id, .reason = std::string(result.status().message())},
                session);
  }
  LogTrouble(*result);
  Report(session, *std::move(result));
}

void RankEngine::Do(const GroupOrder& order, uint64_t session) {
  if (is_drained_) return;
  if (session == epoch_session_ && order.epoch <= epoch_) {
    return Fail(
        {.epoch = order.epoch, .reason = absl::StrCat("epoch ", order.epoch, " does not follow epoch ", epoch_)},
        session);
  }
  epoch_ = order.epoch;
  epoch_session_ = session;
  if (absl::Status status = Form(order); !status.ok()) {
    return Fail({.epoch = order.epoch, .reason = std::string(status.message())}, session);
  }
  is_formed_ = true;
  spdlog::info("epoch {}: the group of {} stands", epoch_, world_size_);
  Report(session, GroupFormed{order.epoch});
}

void RankEngine::Do(const DrainOrder&, uint64_t session) {
  is_drained_ = true;
  Report(session, Drained{});
}

absl::Status RankEngine::Form(const GroupOrder& order) {
  is_formed_ = false;
  if (static_cast<int>(order.addresses.size()) != world_size_) {
    return absl::InvalidArgumentError(
        absl::StrCat("a group of ", order.addresses.size(), " addresses for a model over ", world_size_, " ranks"));
  }
  if (world_size_ == 1) return rank_->Reform(nullptr, order.epoch);
  // The rank lets go of the old communicator before it is destroyed.
  (void)rank_->Reform(nullptr, order.epoch);
  SetCommunicator(nullptr);
  absl::StatusOr<std::unique_ptr<Communicator>> communicator = form_communicator_(order, forming_cancelled_);
  if (!communicator.ok()) return communicator.status();
  Communicator* formed = communicator->get();
  SetCommunicator(*std::move(communicator));
  return rank_->Reform(formed, order.epoch);
}

void RankEngine::SetCommunicator(std::unique_ptr<Communicator> communicator) {
  std::unique_lock lock(mutex_);
  std::swap(communicator_, communicator);
  // An order that came while the group formed has found nothing to abort.
  if (communicator_ != nullptr && forming_cancelled_) communicator_->Abort("a later order has come");
  lock.unlock();
  communicator.reset();  // says goodbye to the others; may take a moment
}

void RankEngine::Fail(RankFailed failure, uint64_t session) {
  is_formed_ = false;
  if (failure.step_id == 0) spdlog::warn("epoch {}: not formed: {}", failure.epoch, failure.reason);
  if (failure.step_id != 0)
    spdlog::warn("epoch {}: ended at step {}: {}", failure.epoch, failure.step_id, failure.reason);
  Report(session, std::move(failure));
}

// ---- telling ----

void RankEngine::Report(uint64_t session, Outcome::What what) {
  std::unique_lock lock(outcomes_mutex_);
  outcomes_changed_.wait(lock, [this] { return outcomes_.size() < kMaxOutcomes; });
  outcomes_.push_back({session, std::move(what)});
  outcomes_changed_.notify_all();
}

void RankEngine::TellLoop() {
  for (Outcome outcome; TakeOutcome(outcome);) Tell(outcome);
}

bool RankEngine::TakeOutcome(Outcome& outcome) {
  std::unique_lock lock(outcomes_mutex_);
  outcomes_changed_.wait(lock, [this] { return is_telling_over_ || !outcomes_.empty(); });
  if (outcomes_.empty()) return false;
  outcome = std::move(outcomes_.front());
  outcomes_.pop_front();
  outcomes_changed_.notify_all();
  return true;
}

void RankEngine::Tell(const Outcome& outcome) {
  const std::shared_ptr<EngineListener> listener = Listener(outcome.session);
  if (listener == nullptr) return;
  if (const auto* formed = std::get_if<GroupFormed>(&outcome.what)) listener->OnGroupFormed(formed->epoch);
  if (const auto* result = std::get_if<StepResult>(&outcome.what)) listener->OnResult(*result);
  if (const auto* failed = std::get_if<RankFailed>(&outcome.what)) listener->OnFailed(*failed);
  if (std::holds_alternative<Drained>(outcome.what)) listener->OnDrained();
}

std::shared_ptr<EngineListener> RankEngine::Listener(uint64_t session) const {
  std::lock_guard lock(mutex_);
  return session == session_ ? listener_ : nullptr;
}

}  // namespace weir::worker
