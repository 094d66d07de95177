#include "gateway/replica/scheduler_messages.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "weir/scheduler/v1/scheduler.pb.h"

namespace weir::gateway {
namespace {

namespace wire = scheduler::v1;

wire::PriorityClass ClassOf(Priority priority) {
  switch (priority) {
    case Priority::kInteractive:
      return wire::PRIORITY_CLASS_INTERACTIVE;
    case Priority::kStandard:
      return wire::PRIORITY_CLASS_STANDARD;
    case Priority::kBatch:
      return wire::PRIORITY_CLASS_BATCH;
  }
  return wire::PRIORITY_CLASS_STANDARD;
}

void FillSampling(const Submission& submission, worker::v1::SamplingParams& out) {
  const SamplingSettings& sampling = submission.sampling;
  out.set_temperature(sampling.temperature);
  out.set_top_k(sampling.top_k);
  out.set_top_p(sampling.top_p);
  out.set_min_p(sampling.min_p);
  out.set_repetition_penalty(sampling.repetition_penalty);
  out.set_presence_penalty(sampling.presence_penalty);
  out.set_frequency_penalty(sampling.frequency_penalty);
  for (const auto& [token, bias] : sampling.logit_bias) {
    worker::v1::LogitBias& entry = *out.add_logit_bias();
    entry.set_token_id(static_cast<uint32_t>(token));
    entry.set_bias(bias);
  }
  out.set_wants_logprob(submission.wants_logprobs);
  out.set_num_top_logprobs(submission.num_top_logprobs);
}

// Schedulers are of our own making, but a number that does not fit must not become another one.
int64_t Signed(uint64_t value) {
  return static_cast<int64_t>(std::min<uint64_t>(value, std::numeric_limits<int64_t>::max() / 16));
}

EndReason ReasonOf(wire::EndReason reason) {
  switch (reason) {
    case wire::END_REASON_STOP:
      return EndReason::kStop;
    case wire::END_REASON_LENGTH:
      return EndReason::kLength;
    case wire::END_REASON_CANCELLED:
      return EndReason::kCancelled;
    case wire::END_REASON_DEADLINE:
      return EndReason::kDeadline;
    case wire::END_REASON_NOT_FINITE:
      return EndReason::kNotFinite;
    case wire::END_REASON_QUARANTINED:
      return EndReason::kQuarantined;
    case wire::END_REASON_REFUSED:
      return EndReason::kRefused;
    default:
      return EndReason::kFailed;
  }
}

Refusal::Reason ReasonOf(wire::RefusalReason reason) {
  switch (reason) {
    case wire::REFUSAL_REASON_TOO_LONG:
      return Refusal::Reason::kTooLong;
    case wire::REFUSAL_REASON_NEVER_FITS:
      return Refusal::Reason::kNeverFits;
    case wire::REFUSAL_REASON_QUEUE_FULL:
      return Refusal::Reason::kQueueFull;
    case wire::REFUSAL_REASON_TENANT_QUEUE_FULL:
      return Refusal::Reason::kTenantQueueFull;
    case wire::REFUSAL_REASON_DEADLINE:
      return Refusal::Reason::kDeadline;
    case wire::REFUSAL_REASON_DRAINING:
      return Refusal::Reason::kDraining;
    case wire::REFUSAL_REASON_NO_WORKERS:
      return Refusal::Reason::kNoWorkers;
    default:
      return Refusal::Reason::kInvalid;
  }
}

WaitSplit ReadWait(const wire::WaitSplit& wait) {
  return {.queued_for_share_us = Signed(wait.queued_for_share_us()),
          .queued_for_blocks_us = Signed(wait.queued_for_blocks_us()),
          .queued_for_slots_us = Signed(wait.queued_for_slots_us()),
          .queued_for_workers_us = Signed(wait.queued_for_workers_us()),
          .prefill_us = Signed(wait.prefill_us()),
          .decode_us = Signed(wait.decode_us()),
          .preempted_us = Signed(wait.preempted_us()),
          .recovering_us = Signed(wait.recovering_us())};
}

OutputToken ReadToken(const wire::TokenOutput& token) {
  OutputToken out{.index = token.index(), .token = static_cast<TokenId>(token.token().token_id())};
  if (token.token().has_logprob()) out.logprob = token.token().logprob();
  for (const worker::v1::TopLogprob& top : token.token().top()) {
    out.top.emplace_back(static_cast<TokenId>(top.token_id()), top.logprob());
  }
  return out;
}

Ending ReadEnding(const wire::RequestEnd& end) {
  Ending out{.reason = ReasonOf(end.reason()),
             .num_cached_tokens = end.num_cached_tokens(),
             .wait = ReadWait(end.wait()),
             .num_preemptions = end.num_preemptions(),
             .num_worker_losses = end.num_worker_losses(),
             .error = end.error()};
  if (out.reason != EndReason::kRefused) return out;
  const wire::Refusal& refusal = end.refusal();
  out.refusal = Refusal{.reason = ReasonOf(refusal.reason()),
                        .retry_after_ms = Signed(refusal.retry_after_ms()),
                        .needed = refusal.needed(),
                        .limit = refusal.limit()};
  return out;
}

}  // namespace

void FillSubmit(uint64_t attempt, const Submission& submission, const std::vector<TokenId>& resumed,
                std::optional<int64_t> deadline_ms, wire::Submit& out) {
  out.set_stream_request_id(attempt);
  out.set_request_id(submission.request_id);
  for (const std::string& node : submission.tenant_path) out.add_tenant_path(node);
  for (const double weight : submission.tenant_weights) out.add_tenant_weights(weight);
  out.set_priority(ClassOf(submission.priority));
  if (deadline_ms) out.set_deadline_ms(static_cast<uint64_t>(*deadline_ms));
  out.mutable_prompt_token_ids()->Add(submission.prompt.begin(), submission.prompt.end());
  out.mutable_resumed_token_ids()->Add(resumed.begin(), resumed.end());
  out.set_max_tokens(static_cast<uint32_t>(submission.max_tokens));
  out.set_min_tokens(static_cast<uint32_t>(submission.min_tokens));
  out.mutable_stop_token_ids()->Add(submission.stop_tokens.begin(), submission.stop_tokens.end());
  FillSampling(submission, *out.mutable_sampling());
  out.set_seed(submission.seed);
  out.set_noise_name(0);  // the seed alone: whoever gives it again gets the same answer again
  out.set_cache_namespace_key(submission.cache_namespace_key.data(), submission.cache_namespace_key.size());
  out.set_traceparent(submission.traceparent);
}

ReplicaView ReadReplica(const wire::Replica& replica) {
  return {
      .build = replica.build(),
      .max_model_len = Signed(replica.max_model_len()),
      .vocab_size = static_cast<int32_t>(std::min<uint32_t>(replica.vocab_size(), std::numeric_limits<int32_t>::max())),
      .is_ready = replica.is_ready(),
      .is_draining = replica.is_draining(),
      .num_requests = int64_t{replica.num_waiting()} + replica.num_running()};
}

ReplicaOutput ReadOutput(const wire::StepOutput& output) {
  ReplicaOutput out;
  out.admitted.assign(output.admitted().begin(), output.admitted().end());
  out.tokens.reserve(output.tokens_size());
  for (const wire::TokenOutput& token : output.tokens()) {
    out.tokens.push_back({.attempt = token.stream_request_id(), .token = ReadToken(token)});
  }
  for (const wire::RequestEnd& end : output.ends()) {
    out.ends.push_back({.attempt = end.stream_request_id(), .ending = ReadEnding(end)});
  }
  return out;
}

}  // namespace weir::gateway
