#include "gateway/serving/served_request.h"

#include <spdlog/spdlog.h>
#include <sys/random.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "gateway/serving/endings.h"
#include "gateway/serving/front_desk.h"

namespace weir::gateway {
namespace {

uint64_t Draw() {
  uint64_t number = 0;
  while (getrandom(&number, sizeof number, 0) != static_cast<ssize_t>(sizeof number)) {
  }
  return number;
}

std::string DrawRequestId() {
  char id[40];
  snprintf(id, sizeof id, "%016llx%016llx", static_cast<unsigned long long>(Draw()),
           static_cast<unsigned long long>(Draw()));
  return id;
}

// Joins text to the frame before it, when that is still waiting and of the same kind.
bool JoinsOnto(Frame& last, Frame& next) {
  auto* before = std::get_if<TextFrame>(&last);
  auto* after = std::get_if<TextFrame>(&next);
  if (before == nullptr || after == nullptr || before->is_reasoning != after->is_reasoning) return false;
  before->text += after->text;
  std::move(after->tokens.begin(), after->tokens.end(), std::back_inserter(before->tokens));
  return true;
}

}  // namespace

ServedRequest::ServedRequest(Arrival arrival, FramePort* port, FrontDesk* desk)
    : arrival_(std::move(arrival)), tenant_(arrival_.identity.TenantName()), desk_(desk), port_(port) {}

// ---- from arrival to a replica ----

void ServedRequest::Prepare() {
  if (const auto error = WhyNotPrepare()) return Refuse(*error);
  PreparedRequest prepared;
  if (const auto error = Check(prepared)) return Refuse(*error);
  if (!prepared.request_id) prepared.request_id = DrawRequestId();
  if (!Claim(*prepared.request_id)) return Refuse(RequestIdInUse());
  if (!prepared.seed) prepared.seed = Draw();
  Submit(MakeSubmission(prepared), prepared);
}

std::optional<RequestError> ServedRequest::WhyNotPrepare() {
  std::lock_guard lock(mutex_);
  if (is_gone_) return ClientCancelled();
  if (is_cut_short_) return Draining();
  if (arrival_.deadline && NowUs() >= *arrival_.deadline) return DeadlinePassed();
  return std::nullopt;
}

std::optional<RequestError> ServedRequest::Check(PreparedRequest& prepared) const {
  if (auto error = arrival_.prepare(prepared)) return error;
  const int64_t of_replicas = arrival_.offer->replicas->max_model_len();
  if (of_replicas > 0 && of_replicas < arrival_.offer->model->max_model_len) return FitToContext(of_replicas, prepared);
  return std::nullopt;
}

bool ServedRequest::Claim(const std::string& request_id) {
  if (!desk_->ClaimId(tenant_, request_id)) return false;
  std::lock_guard lock(mutex_);
  claimed_id_ = request_id;
  return true;
}

std::shared_ptr<const Submission> ServedRequest::MakeSubmission(PreparedRequest& prepared) const {
  auto submission = std::make_shared<Submission>();
  submission->request_id = *prepared.request_id;
  submission->tenant_path = arrival_.identity.tenant_path;
  submission->tenant_weights = arrival_.identity.tenant_weights;
  submission->priority = std::max(prepared.priority, arrival_.identity.highest_priority);
  submission->deadline = arrival_.deadline;
  submission->prompt = std::move(prepared.prompt);
  submission->max_tokens = prepared.max_tokens;
  submission->min_tokens = prepared.min_tokens;
  submission->stop_tokens = std::move(prepared.stop_tokens);
  submission->sampling = std::move(prepared.sampling);
  submission->wants_logprobs = prepared.wants_logprobs;
  submission->num_top_logprobs = prepared.num_top_logprobs;
  submission->seed = *prepared.seed;
  submission->cache_namespace_key = arrival_.identity.cache_namespace_key;
  submission->traceparent = arrival_.traceparent;
  return submission;
}

void ServedRequest::Submit(std::shared_ptr<const Submission> submission, const PreparedRequest& prepared) {
  {
    std::lock_guard lock(mutex_);
    submission_ = submission;
    answer_.emplace(arrival_.offer->model->tokenizer.get(), prepared.dialect, prepared.answer, submission);
    state_ = State::kWaiting;
    replica_has_it_ = true;
    if (is_gone_) WantCancel(false);
  }
  const ReplicaSet::Taken taken = arrival_.offer->replicas->Submit(NowUs(), std::move(submission), shared_from_this());
  {
    std::lock_guard lock(mutex_);
    ticket_ = taken.ticket;
    if (ticket_ == 0) replica_has_it_ = false;
  }
  if (taken.ticket == 0) return Refuse(taken.why == ReplicaSet::NotTaken::kDraining ? Draining() : NoReplica());
  CancelIfWanted();
}

void ServedRequest::Refuse(const RequestError& error) {
  {
    std::lock_guard lock(mutex_);
    FinishWith(error);
    Account(error);
  }
  ReleaseIfOver();
}

// ---- what replicas say ----

void ServedRequest::OnOutput(TimeUs now, Output output) {
  {
    std::lock_guard lock(mutex_);
    if (output.is_admitted) Begin();
    if (!output.tokens.empty()) TakeTokens(now, output.tokens);
    if (output.end) TakeEnd(now, *output.end);
    StartNext();
  }
  CancelIfWanted();
  ReleaseIfOver();
}

void ServedRequest::Begin() {
  if (state_ != State::kWaiting) return;
  state_ = State::kStreaming;
  Queue(StartedFrame{.request_id = submission_->request_id,
                     .model = arrival_.offer->model->name,
                     .seed = submission_->seed,
                     .num_prompt_tokens = static_cast<uint32_t>(submission_->prompt.size())});
}

void ServedRequest::TakeTokens(TimeUs now, std::vector<OutputToken>& tokens) {
  Begin();
  if (state_ != State::kStreaming || has_stopped_ || is_unread_) return;
  MeasureTokens(now, tokens.size());
  std::vector<Frame> frames;
  for (OutputToken& token : tokens) {
    has_stopped_ = answer_->Append(std::move(token), frames);
    if (!has_stopped_) continue;
    WantCancel(true);
    break;
  }
  Queue(std::move(frames));
  if (queue_bytes_ <= desk_->options().max_unread_bytes) return;
  is_unread_ = true;
  desk_->metrics().SlowReaderCutOff();
  WantCancel(false);
}

void ServedRequest::MeasureTokens(TimeUs now, size_t num_tokens) {
  if (first_token_at_ == 0) {
    first_token_at_ = now;
    desk_->metrics().FirstToken(now - arrival_.arrived);
    if (num_tokens > 1) desk_->metrics().BetweenTokens(0, num_tokens - 1);
  } else {
    desk_->metrics().BetweenTokens(now - last_token_at_, num_tokens);
  }
  last_token_at_ = now;
}

void ServedRequest::TakeEnd(TimeUs now, const Ending& ending) {
  replica_has_it_ = false;
  ending_ = ending;
  if (state_ == State::kWaiting) {
    const RequestError error = is_cut_short_ ? Draining() : ErrorOf(ending, tenant_);
    FinishWith(error);
    return Account(error);
  }
  if (state_ == State::kStreaming) {
    std::vector<Frame> frames;
    if (!is_unread_) answer_->Finish(frames);
    Queue(std::move(frames));
    Queue(LastFrame());
    state_ = State::kEnding;
  }
  FinishedFrame finished = LastFrame();
  finished.timing = TimingAt(now);
  Account(finished);
}

StreamEnd ServedRequest::HowItEnded() const {
  if (has_stopped_) return StreamEndOf({.reason = EndReason::kStop}, answer_->num_tool_calls() > 0);
  if (is_unread_) {
    return {
        .reason = FinishReason::kError,
        .error = StreamError{"SLOW_READER", "the client did not read fast enough; read while the answer comes", true}};
  }
  if (is_cut_short_ && ending_->reason == EndReason::kCancelled) {
    return {.reason = FinishReason::kError,
            .error = StreamError{"DRAINING", "this server stops; another one will answer", true}};
  }
  return StreamEndOf(*ending_, answer_->num_tool_calls() > 0);
}

FinishedFrame ServedRequest::LastFrame() const {
  StreamEnd end = HowItEnded();
  const auto num_prompt_tokens = static_cast<uint32_t>(submission_->prompt.size());
  return {.reason = end.reason,
          .usage = {.prompt_tokens = num_prompt_tokens,
                    .cached_tokens = std::min(ending_->num_cached_tokens, num_prompt_tokens),
                    .completion_tokens = answer_->num_tokens(),
                    .reasoning_tokens = answer_->num_reasoning_tokens()},
          .error = std::move(end.error)};
}

// What replicas account for lies between submitting and the end; the rest is the gateway's own.
Timing ServedRequest::TimingAt(TimeUs now) const {
  Timing timing{.total_us = now - arrival_.arrived, .wait = ending_->wait};
  timing.gateway_us = timing.total_us - timing.wait.sum();
  if (first_token_at_ > 0) timing.time_to_first_token_us = first_token_at_ - arrival_.arrived;
  return timing;
}

// ---- the client's stream ----

void ServedRequest::Queue(std::vector<Frame> frames) {
  for (Frame& frame : frames) Queue(std::move(frame));
}

void ServedRequest::Queue(Frame frame) {
  queue_bytes_ += FrameBytes(frame);
  if (!queue_.empty() && JoinsOnto(queue_.back(), frame)) return;
  queue_.push_back(std::move(frame));
}

void ServedRequest::StartNext() {
  if (port_ == nullptr || is_writing_ || state_ == State::kOver) return;
  if (queue_.empty()) {
    if (state_ != State::kEnding) return;
    state_ = State::kOver;
    return port_->Finish(std::nullopt);
  }
  Frame frame = std::move(queue_.front());
  queue_.pop_front();
  if (queue_.empty()) {
    queue_bytes_ = 0;  // joined frames weigh less than their parts
  } else {
    queue_bytes_ = std::max<int64_t>(queue_bytes_ - FrameBytes(frame), 0);
  }
  is_writing_ = true;
  write_began_ = NowUs();
  if (auto* finished = std::get_if<FinishedFrame>(&frame)) finished->timing = TimingAt(write_began_);
  port_->Write(frame);
}

void ServedRequest::FinishWith(const RequestError& error) {
  if (state_ == State::kOver) return;
  state_ = State::kOver;
  if (port_ != nullptr) port_->Finish(error);
}

void ServedRequest::OnWriteDone(bool ok) {
  std::lock_guard lock(mutex_);
  is_writing_ = false;
  if (ok) StartNext();  // otherwise OnCancel comes
}

void ServedRequest::OnCancel() {
  {
    std::lock_guard lock(mutex_);
    is_gone_ = true;
    if (state_ == State::kPreparing) return;  // Prepare sees it
    FinishWith(ClientCancelled());
    WantCancel(false);
  }
  CancelIfWanted();
}

void ServedRequest::OnDone() {
  {
    std::lock_guard lock(mutex_);
    port_ = nullptr;
    queue_.clear();
  }
  ReleaseIfOver();
}

void ServedRequest::OnTime(TimeUs now) {
  std::lock_guard lock(mutex_);
  const bool only_reading_is_left = is_unread_ || state_ == State::kEnding;
  if (port_ == nullptr || !is_writing_ || !only_reading_is_left) return;
  if (now - write_began_ > desk_->options().slow_reader_timeout_us) port_->CutOff();
}

void ServedRequest::StopShort() {
  {
    std::lock_guard lock(mutex_);
    is_cut_short_ = true;
    if (state_ == State::kPreparing) return;  // Prepare sees it
    WantCancel(false);
  }
  CancelIfWanted();
}

// ---- ends ----

void ServedRequest::WantCancel(bool is_stop) {
  if (cancel_wish_ != CancelWish::kNone || !replica_has_it_) return;
  cancel_wish_ = is_stop ? CancelWish::kStop : CancelWish::kCancel;
}

// The lock is not held: the end may come on this thread.
void ServedRequest::CancelIfWanted() {
  uint64_t ticket = 0;
  bool is_stop = false;
  {
    std::lock_guard lock(mutex_);
    if (ticket_ == 0 || cancel_wish_ == CancelWish::kNone || cancel_wish_ == CancelWish::kDone) return;
    ticket = ticket_;
    is_stop = cancel_wish_ == CancelWish::kStop;
    cancel_wish_ = CancelWish::kDone;
  }
  arrival_.offer->replicas->Cancel(NowUs(), ticket, is_stop);
}

void ServedRequest::Account(const RequestError& error) {
  if (std::exchange(is_accounted_, true)) return;
  desk_->metrics().RequestRefused(tenant_, arrival_.api, error);
  spdlog::info("request {} of {}: {} refused: {}", claimed_id_.empty() ? "-" : claimed_id_, tenant_, Name(arrival_.api),
               error.reason);
}

void ServedRequest::Account(const FinishedFrame& finished) {
  if (std::exchange(is_accounted_, true)) return;
  desk_->metrics().RequestFinished(tenant_, arrival_.api, finished);
  spdlog::info("request {} of {}: {} {}, {} prompt tokens ({} cached), {} output tokens, {} ms", claimed_id_, tenant_,
               Name(arrival_.api), finished.error ? finished.error->reason : Name(finished.reason),
               finished.usage.prompt_tokens, finished.usage.cached_tokens, finished.usage.completion_tokens,
               finished.timing.total_us / 1000);
}

// Its place is free when both sides have let go.
void ServedRequest::ReleaseIfOver() {
  std::string request_id;
  {
    std::lock_guard lock(mutex_);
    if (port_ != nullptr || replica_has_it_) return;
    request_id = claimed_id_;
  }
  desk_->Release(shared_from_this(), tenant_, request_id);
}

}  // namespace weir::gateway
