#include "scheduler/service/gateway_stream.h"

#include <algorithm>
#include <utility>

#include "scheduler/service/event_loop.h"
#include "scheduler/service/submission.h"

namespace weir::scheduler {
namespace {

constexpr int64_t kBytesPerEntry = 16;  // of a message, beyond what is counted
constexpr TimeUs kQueueFullRetryUs = 1'000'000;

uint64_t Unsigned(int64_t value) { return static_cast<uint64_t>(std::max<int64_t>(value, 0)); }

void FillToken(const TokenOutput& token, v1::TokenOutput& out) {
  out.set_stream_request_id(token.number);
  out.set_index(static_cast<uint32_t>(token.index));
  out.mutable_token()->set_token_id(static_cast<uint32_t>(token.token));
  if (token.logprobs.logprob) out.mutable_token()->set_logprob(*token.logprobs.logprob);
  for (const auto& [id, logprob] : token.logprobs.top) {
    worker::v1::TopLogprob* top = out.mutable_token()->add_top();
    top->set_token_id(static_cast<uint32_t>(id));
    top->set_logprob(logprob);
  }
}

v1::EndReason ReasonOf(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::END_REASON_STOP;
    case FinishReason::kLength:
      return v1::END_REASON_LENGTH;
    case FinishReason::kCancelled:
      return v1::END_REASON_CANCELLED;
    case FinishReason::kDeadline:
      return v1::END_REASON_DEADLINE;
    case FinishReason::kNotFinite:
      return v1::END_REASON_NOT_FINITE;
    case FinishReason::kFailed:
      return v1::END_REASON_FAILED;
    case FinishReason::kQuarantined:
      return v1::END_REASON_QUARANTINED;
  }
  return v1::END_REASON_UNSPECIFIED;
}

v1::RefusalReason ReasonOf(RefusalReason reason) {
  switch (reason) {
    case RefusalReason::kInvalid:
      return v1::REFUSAL_REASON_INVALID;
    case RefusalReason::kTooLong:
      return v1::REFUSAL_REASON_TOO_LONG;
    case RefusalReason::kNeverFits:
      return v1::REFUSAL_REASON_NEVER_FITS;
    case RefusalReason::kQueueFull:
      return v1::REFUSAL_REASON_QUEUE_FULL;
    case RefusalReason::kTenantQueueFull:
      return v1::REFUSAL_REASON_TENANT_QUEUE_FULL;
    case RefusalReason::kDeadline:
      return v1::REFUSAL_REASON_DEADLINE;
    case RefusalReason::kDraining:
      return v1::REFUSAL_REASON_DRAINING;
  }
  return v1::REFUSAL_REASON_UNSPECIFIED;
}

v1::RefusalReason ReasonOf(NotTaken::Reason reason) {
  switch (reason) {
    case NotTaken::Reason::kInvalid:
      return v1::REFUSAL_REASON_INVALID;
    case NotTaken::Reason::kQueueFull:
      return v1::REFUSAL_REASON_QUEUE_FULL;
    case NotTaken::Reason::kTenantQueueFull:
      return v1::REFUSAL_REASON_TENANT_QUEUE_FULL;
    case NotTaken::Reason::kNoWorkers:
      return v1::REFUSAL_REASON_NO_WORKERS;
  }
  return v1::REFUSAL_REASON_UNSPECIFIED;
}

void FillEnd(const Finished& finished, v1::RequestEnd& out) {
  out.set_reason(ReasonOf(finished.reason));
  out.set_num_cached_tokens(static_cast<uint32_t>(finished.num_cached_tokens));
  out.set_num_output_tokens(static_cast<uint32_t>(finished.num_output_tokens));
  out.set_num_preemptions(static_cast<uint32_t>(finished.num_preemptions));
  out.set_num_worker_losses(static_cast<uint32_t>(finished.num_worker_losses));
  v1::WaitSplit& wait = *out.mutable_wait();
  wait.set_queued_for_share_us(Unsigned(finished.wait.queued_for_share_us));
  wait.set_queued_for_blocks_us(Unsigned(finished.wait.queued_for_blocks_us));
  wait.set_queued_for_slots_us(Unsigned(finished.wait.queued_for_slots_us));
  wait.set_queued_for_workers_us(Unsigned(finished.wait.queued_for_workers_us));
  wait.set_prefill_us(Unsigned(finished.wait.prefill_us));
  wait.set_decode_us(Unsigned(finished.wait.decode_us));
  wait.set_preempted_us(Unsigned(finished.wait.preempted_us));
  wait.set_recovering_us(Unsigned(finished.wait.recovering_us));
}

// Refused and NotTaken.
template <typename Why>
void FillEnd(const Why& why, v1::RequestEnd& out) {
  out.set_reason(v1::END_REASON_REFUSED);
  v1::Refusal& refusal = *out.mutable_refusal();
  refusal.set_reason(ReasonOf(why.reason));
  refusal.set_retry_after_ms(Unsigned((why.retry_after_us + 999) / 1000));
  refusal.set_needed(why.needed);
  refusal.set_limit(why.limit);
}

// Returns about how many bytes it has added.
int64_t Add(const GatewayOutput& output, v1::StepOutput& out) {
  int64_t bytes = 0;
  for (const TokenOutput& token : output.tokens) {
    FillToken(token, *out.add_tokens());
    bytes += kBytesPerEntry * static_cast<int64_t>(1 + token.logprobs.top.size());
  }
  for (const EndOutput& end : output.ends) {
    v1::RequestEnd& message = *out.add_ends();
    message.set_stream_request_id(end.number);
    std::visit([&](const auto& how) { FillEnd(how, message); }, end.how);
    message.set_error(end.error);
    bytes += 6 * kBytesPerEntry + static_cast<int64_t>(end.error.size());
  }
  out.mutable_admitted()->Add(output.admitted.begin(), output.admitted.end());
  return bytes + kBytesPerEntry * static_cast<int64_t>(output.admitted.size());
}

}  // namespace

void FillReplica(const std::string& build, const ReplicaView& view, v1::Replica& replica) {
  replica.set_build(build);
  replica.set_manifest_hash(view.manifest_hash);
  replica.set_max_model_len(Unsigned(view.max_model_len));
  replica.set_vocab_size(static_cast<uint32_t>(view.vocab_size));
  replica.set_block_size(static_cast<uint32_t>(view.block_size));
  for (const TokenId token : view.eos_token_ids) replica.add_eos_token_ids(static_cast<uint32_t>(token));
  replica.set_is_ready(view.is_ready);
  replica.set_is_draining(view.is_draining);
  replica.set_num_waiting(static_cast<uint32_t>(view.num_waiting));
  replica.set_num_running(static_cast<uint32_t>(view.num_running));
  replica.set_num_free_blocks(Unsigned(view.num_free_blocks));
  replica.set_num_blocks(Unsigned(view.num_blocks));
}

// ---- what goes out ----

void GatewayOutbox::Send(GatewayOutput output) {
  std::lock_guard lock(mutex_);
  if (stream_ == nullptr || is_finished_ || is_closing_ || is_cut_off_) return;
  waiting_bytes_ += Add(output, *waiting_.mutable_output());
  has_waiting_ = true;
  if (waiting_bytes_ > max_bytes_) {
    is_cut_off_ = true;
    return stream_->CutOff();
  }
  StartNext();
}

void GatewayOutbox::SendHello(const std::string& build, const ReplicaView& view) {
  std::lock_guard lock(mutex_);
  FillReplica(build, view, *writing_.mutable_hello()->mutable_replica());
  is_writing_ = true;
  stream_->StartWrite(&writing_);
}

void GatewayOutbox::Close(const std::string& reason) {
  std::lock_guard lock(mutex_);
  if (stream_ == nullptr || is_finished_) return;
  is_closing_ = true;
  closing_ = grpc::Status(grpc::StatusCode::UNAVAILABLE, reason);
  StartNext();
}

void GatewayOutbox::Finish(const grpc::Status& status) {
  std::lock_guard lock(mutex_);
  if (stream_ == nullptr || is_finished_) return;
  is_finished_ = true;
  stream_->Finish(status);
}

void GatewayOutbox::OnWriteDone(bool ok) {
  std::lock_guard lock(mutex_);
  is_writing_ = false;
  if (ok) StartNext();
}

void GatewayOutbox::StartNext() {
  if (is_writing_ || is_finished_ || stream_ == nullptr) return;
  if (has_waiting_) {
    writing_.Clear();
    std::swap(writing_, waiting_);
    has_waiting_ = false;
    waiting_bytes_ = 0;
    is_writing_ = true;
    stream_->StartWrite(&writing_);
  } else if (is_closing_) {
    is_finished_ = true;
    stream_->Finish(closing_);
  }
}

void GatewayOutbox::Detach() {
  std::lock_guard lock(mutex_);
  stream_ = nullptr;
}

// ---- what comes in ----

GatewayStream::GatewayStream(GatewayId id, grpc::CallbackServerContext* context, const ServiceOptions& options,
                             Inbox* inbox, ReplicaBoard* board, const channels::LiveCalls& live_calls)
    : live_(live_calls),
      id_(id),
      context_(context),
      options_(options),
      inbox_(inbox),
      board_(board),
      outbox_(std::make_shared<GatewayOutbox>(this, options.max_output_bytes)) {
  StartRead(&request_);
}

// The end of a gateway's writing is the end of its stream: it has nobody left to serve.
void GatewayStream::OnReadDone(bool ok) {
  if (!ok) return outbox_->Finish(grpc::Status::OK);
  if (Take()) StartRead(&request_);
}

// False: the stream ends.
bool GatewayStream::Take() {
  const auto complain = [this](grpc::StatusCode code, const char* what) {
    outbox_->Finish(grpc::Status(code, what));
    return false;
  };
  if (!has_joined_ && !request_.has_hello()) {
    return complain(grpc::StatusCode::FAILED_PRECONDITION, "the first message must be a hello");
  }
  const auto full = [&] {
    return complain(grpc::StatusCode::RESOURCE_EXHAUSTED,
                    "the scheduler is behind with its messages; connect again later");
  };
  switch (request_.message_case()) {
    case v1::ServeRequest::kHello:
      if (has_joined_) return complain(grpc::StatusCode::FAILED_PRECONDITION, "a second hello");
      return Take(request_.hello()) || full();
    case v1::ServeRequest::kSubmit:
      return Take(request_.submit()) || full();
    case v1::ServeRequest::kCancel:
      return Take(request_.cancel()) || full();
    case v1::ServeRequest::MESSAGE_NOT_SET:
      break;
  }
  return complain(grpc::StatusCode::INVALID_ARGUMENT, "a message that says nothing");
}

bool GatewayStream::Take(const v1::GatewayHello& hello) {
  has_joined_ = true;
  outbox_->SendHello(options_.build, board_->Read());
  return inbox_->Push(GatewayJoined{.gateway = id_, .name = hello.gateway_name().substr(0, 256), .sink = outbox_});
}

bool GatewayStream::Take(const v1::Submit& submit) {
  const ReplicaView replica = board_->Read();
  if (!replica.is_known()) {
    return Refuse(submit.stream_request_id(),
                  {.reason = NotTaken::Reason::kNoWorkers, .retry_after_us = kQueueFullRetryUs}, replica.why_not_ready);
  }
  Submission submission{.gateway = id_};
  std::string error = ReadSubmission(submit, replica, options_.secret, NowUs(), submission);
  if (!error.empty()) return Refuse(submit.stream_request_id(), {}, std::move(error));
  return inbox_->Push(std::move(submission)) ||
         Refuse(submit.stream_request_id(),
                {.reason = NotTaken::Reason::kQueueFull, .retry_after_us = kQueueFullRetryUs},
                "too many requests arrive at once");
}

bool GatewayStream::Take(const v1::Cancel& cancel) {
  return inbox_->Push(CancelOrder{.gateway = id_, .number = cancel.stream_request_id(), .is_stop = cancel.is_stop()});
}

// The loop answers and counts it: answers keep their order.
bool GatewayStream::Refuse(uint64_t number, NotTaken why, std::string error) {
  return inbox_->Push(Rejection{.gateway = id_, .number = number, .why = why, .error = std::move(error)});
}

void GatewayStream::OnCancel() { outbox_->Finish(grpc::Status::CANCELLED); }

void GatewayStream::OnDone() {
  outbox_->Detach();
  inbox_->Push(GatewayGone{.gateway = id_});
  delete this;
}

}  // namespace weir::scheduler
