#include "scheduler/service/event_loop.h"

#include <spdlog/spdlog.h>
#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "scheduler/service/plan_builder.h"

namespace weir::scheduler {
namespace {

constexpr TimeUs kLongestSleepUs = 500'000;  // the heartbeat, when nothing happens
constexpr TimeUs kNoWorkersRetryUs = 1'000'000;

std::chrono::steady_clock::time_point PointOf(TimeUs us) {
  return std::chrono::steady_clock::time_point(std::chrono::microseconds(us));
}

const char* NameOf(RefusalReason reason) {
  switch (reason) {
    case RefusalReason::kInvalid:
      return "invalid";
    case RefusalReason::kTooLong:
      return "too_long";
    case RefusalReason::kNeverFits:
      return "never_fits";
    case RefusalReason::kQueueFull:
      return "queue_full";
    case RefusalReason::kTenantQueueFull:
      return "tenant_queue_full";
    case RefusalReason::kDeadline:
      return "deadline";
    case RefusalReason::kDraining:
      return "draining";
  }
  return "unknown";
}

const char* NameOf(NotTaken::Reason reason) {
  switch (reason) {
    case NotTaken::Reason::kInvalid:
      return "invalid";
    case NotTaken::Reason::kQueueFull:
      return "queue_full";
    case NotTaken::Reason::kTenantQueueFull:
      return "tenant_queue_full";
    case NotTaken::Reason::kNoWorkers:
      return "no_workers";
  }
  return "unknown";
}

}  // namespace

TimeUs NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

EventLoop::EventLoop(EventLoopOptions options, Inbox* inbox, RankPort* port, ReplicaBoard* board,
                     SchedulerMetrics* metrics)
    : options_(std::move(options)),
      inbox_(inbox),
      board_(board),
      metrics_(metrics),
      group_(options_.group, port),
      step_cost_(options_.policy.step_cost),
      tenants_(options_.policy, options_.max_tenants) {
  metrics_->SetStepCost(step_cost_.cost());
}

// ---- the loop ----

bool EventLoop::Run() {
  Turn({});
  while (!IsDrained()) Turn(inbox_->TakeAll(PointOf(WakeTime())));
  return HandBack();
}

void EventLoop::Turn(std::vector<Message> messages) {
  now_ = NowUs();
  num_messages_ = messages.size();
  for (Message& message : messages) std::visit([this](auto& happened) { On(happened); }, message);
  group_.OnTime(now_, news_);
  TakeNews();
  if (core_ != nullptr) {
    Apply(Tick{});
    SendCanary();
    Plan();
  }
  Flush();
  Publish();
}

TimeUs EventLoop::WakeTime() const {
  TimeUs wake = std::min({now_ + kLongestSleepUs, group_.wake_time(), drain_deadline_});
  if (core_ != nullptr) wake = std::min(wake, core_->wake_time());
  if (group_.stands() && requests_.size() == 0 && !is_draining_) wake = std::min(wake, canary_at_);
  return wake;
}

void EventLoop::Plan() {
  while (group_.stands() && core_->Plan(now_, plan_, outputs_)) {
    group_.Send(now_, plan_, BuildPlan(plan_, *core_, requests_));
    metrics_->StepPlanned(plan_);
    if (is_ready_) canary_at_ = now_ + options_.canary_interval_us;
  }
  Deliver();
}

// ---- gateways ----

void EventLoop::On(GatewayJoined& joined) {
  spdlog::info("gateway {} ({}) joined", joined.gateway, joined.name);
  gateways_[joined.gateway] = {.name = joined.name, .sink = std::move(joined.sink)};
}

void EventLoop::On(GatewayGone& gone) {
  if (gateways_.erase(gone.gateway) == 0) return;
  const std::vector<RequestId> orphans = requests_.Of(gone.gateway);
  spdlog::info("gateway {} is gone; {} requests of it are cancelled", gone.gateway, orphans.size());
  for (const RequestId id : orphans) Apply(Cancel{.id = id});
}

void EventLoop::On(Submission& submission) {
  if (!gateways_.contains(submission.gateway)) return;
  if (core_ == nullptr) {
    return Refuse(submission, {.reason = NotTaken::Reason::kNoWorkers, .retry_after_us = kNoWorkersRetryUs},
                  group_.WhyApart());
  }
  if (requests_.Find(submission.gateway, submission.number) != nullptr) {
    return Refuse(submission, {}, "stream_request_id: names a request that is still running");
  }
  if (const TenantId tenant = FindTenant(submission); tenant >= 0) Admit(submission, tenant);
}

// -1: refused.
TenantId EventLoop::FindTenant(const Submission& submission) {
  TenantTable::Found found = tenants_.Find(submission.tenant_path, submission.tenant_weights);
  if (found.has_changed) Apply(PolicyChanged{tenants_.policy()});
  if (found.is_full) {
    Refuse(submission,
           {.reason = NotTaken::Reason::kTenantQueueFull,
            .needed = tenants_.max_tenants() + 1,
            .limit = tenants_.max_tenants()},
           found.error);
    return -1;
  }
  if (!found.error.empty()) {
    Refuse(submission, {}, found.error);
    return -1;
  }
  return found.id;
}

void EventLoop::Admit(Submission& submission, TenantId tenant) {
  const RequestId id = next_request_++;
  requests_.Add({.id = id,
                 .gateway = submission.gateway,
                 .number = submission.number,
                 .name = submission.name,
                 .tenant = tenant,
                 .noise_name = submission.noise_name,
                 .seed = submission.seed,
                 .sampling = std::move(submission.sampling),
                 .wants_logprobs = submission.wants_logprobs,
                 .num_prompt_tokens = static_cast<int32_t>(submission.prompt.size())});
  Apply(Arrival{.id = id,
                .tenant = tenant,
                .priority = submission.priority,
                .deadline = submission.deadline,
                .prompt = std::move(submission.prompt),
                .resumed = std::move(submission.resumed),
                .block_keys = std::move(submission.block_keys),
                .max_tokens = submission.max_tokens,
                .min_tokens = submission.min_tokens,
                .stop_tokens = std::move(submission.stop_tokens)});
  const LiveRequest* request = requests_.Find(id);
  if (request == nullptr) return;  // refused
  if (GatewayOutput* output = OutputFor(*request)) output->admitted.push_back(request->number);
}

void EventLoop::Refuse(const Submission& submission, NotTaken why, std::string error) {
  Refuse(Rejection{.gateway = submission.gateway, .number = submission.number, .why = why, .error = std::move(error)});
}

void EventLoop::Refuse(Rejection rejection) {
  const auto gateway = gateways_.find(rejection.gateway);
  if (gateway == gateways_.end()) return;
  metrics_->RequestRefused(NameOf(rejection.why.reason));
  gateway->second.output.ends.push_back(
      {.number = rejection.number, .how = rejection.why, .error = std::move(rejection.error)});
}

void EventLoop::On(Rejection& rejection) { Refuse(std::move(rejection)); }

void EventLoop::On(CancelOrder& cancel) {
  const LiveRequest* request = requests_.Find(cancel.gateway, cancel.number);
  if (request == nullptr) return;  // has ended meanwhile
  Apply(Cancel{.id = request->id, .reason = cancel.is_stop ? Cancel::Reason::kStopString : Cancel::Reason::kClient});
}

// ---- ranks ----

void EventLoop::On(RankEvent& event) {
  group_.On(now_, std::move(event), news_);
  TakeNews();
}

void EventLoop::TakeNews() {
  for (WorkerGroup::News& news : std::exchange(news_, {})) {
    std::visit([this](auto& what) { On(what); }, news);
  }
}

void EventLoop::On(WorkerGroup::Formed& formed) {
  metrics_->GroupFormed(formed.epoch, formed.took_us);
  if (core_ == nullptr) {
    shape_ = formed.shape;
    Limits limits = formed.shape.limits;
    limits.max_steps_in_flight = options_.max_steps_in_flight;
    limits.max_num_waiting = options_.max_num_waiting;
    limits.max_waiting_tokens = options_.max_waiting_tokens;
    core_ = std::make_unique<Scheduler>(limits, tenants_.policy());
    group_.RequireShape(formed.shape);
  }
  shape_ = formed.shape;
  is_ready_ = false;
  canary_at_ = now_;
  Apply(GroupFormed{.epoch = formed.epoch,
                    .num_dp_groups = formed.shape.dp,
                    .blocks_per_dp_group = formed.shape.blocks_per_dp_group});
}

void EventLoop::On(WorkerGroup::Lost& lost) {
  metrics_->GroupLost();
  is_ready_ = false;
  Apply(WorkerLost{.epoch = lost.epoch});
}

// The core hears of failures with the token that a row should have given.  Rows that give none end here.
void EventLoop::On(CompletedStep& step) {
  metrics_->StepCompleted(step);
  std::vector<RequestId> failed;
  for (StepRequest& answer : step.requests) {
    LiveRequest* request = requests_.Find(answer.id);
    if (request == nullptr) continue;
    if (request->wants_logprobs) logprobs_[answer.id] = std::move(answer.logprobs);
    if (answer.error.empty()) continue;
    request->error = std::move(answer.error);
    spdlog::warn("request {}: failed: {}", request->name, request->error);
    if (!answer.samples) failed.push_back(answer.id);
  }
  Apply(step.result);
  for (const RequestId id : failed) Apply(Cancel{.id = id});
  logprobs_.clear();
  LearnCost(step);
}

// By the ranks' own clocks: here, results that were found waiting together would seem to have taken no time.
void EventLoop::LearnCost(const CompletedStep& step) {
  TimeUs took = 0;
  for (const RankShare& share : step.ranks) took = std::max<TimeUs>(took, share.total_us);
  if (took == 0 || !step_cost_.Record(now_, step.size, took)) return;
  tenants_.SetStepCost(step_cost_.cost());
  metrics_->SetStepCost(step_cost_.cost());
  Apply(PolicyChanged{tenants_.policy()});
}

// A request of the scheduler's own: when it has been answered, the group is known to work.  Others' tokens prove as
// much, so it is sent only when nobody else is there.
void EventLoop::SendCanary() {
  if (!group_.stands() || requests_.size() > 0 || is_draining_ || now_ < canary_at_) return;
  canary_at_ = now_ + std::min<TimeUs>(options_.canary_interval_us, 1'000'000);
  const RequestId id = next_request_++;
  requests_.Add({.id = id, .number = id, .name = "canary", .tenant = TenantTable::kOwn, .num_prompt_tokens = 1});
  Apply(Arrival{.id = id, .tenant = TenantTable::kOwn, .prompt = {0}, .max_tokens = 1});
}

// ---- what the core says ----

void EventLoop::Apply(const Event& event) {
  if (core_ == nullptr) return;
  core_->Apply(now_, event, outputs_);
  Deliver();
}

void EventLoop::Deliver() {
  for (const Output& output : outputs_) {
    std::visit([this](const auto& said) { Deliver(said); }, output);
  }
  outputs_.clear();
}

void EventLoop::Deliver(const Token& token) {
  is_ready_ = true;
  const LiveRequest* request = requests_.Find(token.id);
  if (request == nullptr) return;
  GatewayOutput* output = OutputFor(*request);
  if (output == nullptr) return;
  output->tokens.push_back({.number = request->number, .index = token.index, .token = token.token});
  if (const auto logprobs = logprobs_.find(token.id); logprobs != logprobs_.end()) {
    output->tokens.back().logprobs = std::move(logprobs->second);
  }
}

void EventLoop::Deliver(const Finished& said) {
  const LiveRequest* request = requests_.Find(said.id);
  if (request == nullptr) return;
  Finished finished = said;
  if (finished.reason == FinishReason::kCancelled && !request->error.empty()) finished.reason = FinishReason::kFailed;
  if (request->tenant == TenantTable::kOwn && finished.reason != FinishReason::kLength) {
    spdlog::error("the group does not produce tokens: its canary ended without one: {}", request->error);
  }
  if (request->tenant != TenantTable::kOwn) {
    metrics_->RequestEnded(finished, tenants_.name(request->tenant));
    spdlog::debug("request {}: ended after {} tokens", request->name, finished.num_output_tokens);
  }
  End(finished.id, {.number = request->number, .how = finished, .error = request->error});
}

void EventLoop::Deliver(const Refused& refused) {
  const LiveRequest* request = requests_.Find(refused.id);
  if (request == nullptr) return;
  metrics_->RequestRefused(NameOf(refused.reason));
  spdlog::debug("request {}: refused: {}", request->name, NameOf(refused.reason));
  End(refused.id, {.number = request->number, .how = refused});
}

void EventLoop::End(RequestId id, EndOutput end) {
  if (GatewayOutput* output = OutputFor(*requests_.Find(id))) output->ends.push_back(std::move(end));
  requests_.Remove(id);
}

GatewayOutput* EventLoop::OutputFor(const LiveRequest& request) {
  const auto gateway = gateways_.find(request.gateway);
  return gateway == gateways_.end() ? nullptr : &gateway->second.output;
}

void EventLoop::Flush() {
  for (auto& [id, gateway] : gateways_) {
    if (!gateway.output.empty()) gateway.sink->Send(std::exchange(gateway.output, {}));
  }
}

void EventLoop::Publish() {
  ReplicaView view{.is_ready = is_ready_ && group_.stands() && !is_draining_, .is_draining = is_draining_};
  if (core_ != nullptr) {
    const Stats& stats = core_->stats();
    view.manifest_hash = shape_->manifest_hash;
    view.max_model_len = shape_->limits.max_model_len;
    view.vocab_size = shape_->vocab_size;
    view.block_size = shape_->limits.block_size;
    view.eos_token_ids = shape_->eos_token_ids;
    view.tp = shape_->tp;
    view.dp = shape_->dp;
    view.num_waiting = stats.num_waiting;
    view.num_running = stats.num_running;
    view.num_free_blocks = stats.blocks_free;
    view.num_blocks = stats.blocks_total;
    metrics_->SetStats(stats, group_.stands());
  }
  view.why_not_ready = view.is_ready     ? ""
                       : is_draining_    ? "draining"
                       : group_.stands() ? "no token has been produced yet"
                                         : group_.WhyApart();
  view.heartbeat = now_;
  for (int32_t rank = 0; rank < group_.num_ranks(); ++rank) metrics_->SetRankUp(rank, group_.is_up(rank));
  metrics_->SetQueues(num_messages_, gateways_.size(), tenants_.policy().tenants.size());
  metrics_->SetReady(view.is_ready);
  board_->Write(std::move(view));
}

// ---- draining ----

void EventLoop::On(DrainOrder& order) {
  if (is_draining_) return;
  spdlog::info("draining: {} requests are to end within {} ms", requests_.size(), order.patience_us / 1000);
  is_draining_ = true;
  drain_deadline_ = now_ + order.patience_us;
  Apply(DrainStarted{});
}

bool EventLoop::IsDrained() const { return is_draining_ && (requests_.size() == 0 || now_ >= drain_deadline_); }

// Gateways take what has not ended to another replica, with the tokens they have.
bool EventLoop::HandBack() {
  if (requests_.size() > 0) spdlog::warn("draining: {} requests are handed back to their gateways", requests_.size());
  for (auto& [id, gateway] : gateways_) gateway.sink->Close("this replica has drained");
  return requests_.size() == 0;
}

}  // namespace weir::scheduler
