#include "tests/sim/clients.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_format.h"

namespace weir::sim {

using scheduler::Finished;
using scheduler::FinishReason;
using scheduler::Policy;
using scheduler::RefusalReason;
using scheduler::TimeUs;

namespace {

constexpr uint32_t Bit(RefusalReason reason) { return 1U << static_cast<uint32_t>(reason); }

}  // namespace

Request& Clients::Add(std::unique_ptr<Request> request) {
  requests_.push_back(std::move(request));
  return *requests_.back();
}

// Which refusals the books call for.  A refusal that only an estimate can justify (a deadline that cannot be met) is
// allowed to any request with a deadline.
void Clients::BeforeArrival(Request& request, const Policy& policy, const Workers& workers, bool is_draining,
                            TimeUs now) {
  const scheduler::Arrival& arrival = request.arrival;
  arriving_ = &request;
  was_answered_ = false;
  allowed_refusals_ = required_refusals_ = 0;
  const auto require = [this](bool condition, RefusalReason reason) {
    if (condition) required_refusals_ |= Bit(reason);
  };
  const bool knows_tenant = arrival.tenant >= 0 && arrival.tenant < std::ssize(policy.tenants);
  const bool repeats = Find(arrival.id) != &request;
  const int64_t wanted = std::ssize(arrival.prompt) + static_cast<int64_t>(arrival.max_tokens);
  require(!knows_tenant || repeats || arrival.prompt.empty() || arrival.max_tokens <= std::ssize(arrival.resumed),
          RefusalReason::kInvalid);
  require(wanted > limits_.max_model_len, RefusalReason::kTooLong);
  require(arrival.deadline <= now, RefusalReason::kDeadline);
  require(is_draining, RefusalReason::kDraining);
  require(workers.stands() && num_blocks_for(wanted - 1) > blocks_per_dp_group_, RefusalReason::kNeverFits);
  // The last token is never computed.  A pool that counts it in refuses what just fits: allowed, but not required.
  if (workers.stands() && num_blocks_for(wanted) > blocks_per_dp_group_)
    allowed_refusals_ |= Bit(RefusalReason::kNeverFits);

  tenant_limit_ = knows_tenant ? policy.tenants[static_cast<size_t>(arrival.tenant)].max_num_waiting : 0;
  CountWaiting(arrival.tenant, scheduler::kNever);
  allowed_refusals_ |= FullQueues(arrival);
  CountWaiting(arrival.tenant, now);
  required_refusals_ |= FullQueues(arrival);
  allowed_refusals_ |= required_refusals_;
  if (arrival.deadline != scheduler::kNever) allowed_refusals_ |= Bit(RefusalReason::kDeadline);
}

// Of the waiting, those who will not have expired before the arrival is looked at.
void Clients::CountWaiting(scheduler::TenantId tenant, TimeUs unless_expired_at) {
  num_waiting_ = num_waiting_of_tenant_ = waiting_tokens_ = 0;
  for (const Request* other : live_) {
    if (other->is_running()) continue;
    if (unless_expired_at != scheduler::kNever && other->arrival.deadline <= unless_expired_at) continue;
    ++num_waiting_;
    waiting_tokens_ += other->num_prompt();
    if (other->arrival.tenant == tenant) ++num_waiting_of_tenant_;
  }
}

uint32_t Clients::FullQueues(const scheduler::Arrival& arrival) const {
  uint32_t reasons = 0;
  const bool has_too_many = num_waiting_ >= limits_.max_num_waiting ||
                            waiting_tokens_ + std::ssize(arrival.prompt) > limits_.max_waiting_tokens;
  if (has_too_many) reasons |= Bit(RefusalReason::kQueueFull);
  if (num_waiting_of_tenant_ >= tenant_limit_) reasons |= Bit(RefusalReason::kTenantQueueFull);
  return reasons;
}

void Clients::BeforeCancel(const scheduler::Cancel& cancel) {
  Request* request = Find(cancel.id);
  if (request == nullptr || !request->is_live) return;
  request->is_cancelled = true;
  request->cancel_reason = cancel.reason;
  must_end_.push_back(request);
}

void Clients::BeforeStepCompleted(const FlyingStep& step) {
  size_t next = 0;
  for (const FlyingWork& work : step.work) {
    if (!work.samples) continue;
    const scheduler::SampledToken& sampled = step.sampled[next++];
    Request& request = *work.request;
    const int32_t num_known = work.first_position + work.num_tokens + 1;
    const bool is_broken = !sampled.is_finite || sampled.has_failed;
    request.was_not_finite |= !sampled.is_finite;
    request.has_failed |= sampled.has_failed;
    if (!is_broken) request.num_sampled = std::max(request.num_sampled, num_known);
    // Preempted meanwhile: the token may be kept or computed again.
    const bool still_runs = request.is_live && request.is_running() && request.life == work.life;
    if (still_runs) due_.push_back({&request, num_known, is_broken});
  }
}

void Clients::BeforeWorkerLost(const Policy& policy) {
  for (Request* request : live_) {
    if (!request->is_running() && request->num_in_flight == 0) continue;
    ++request->num_losses_holding;
    if (request->num_in_flight == 0) continue;
    if (++request->num_losses_in_flight >= policy.max_worker_losses) must_end_.push_back(request);
  }
}

void Clients::Deliver(const scheduler::Output& output, const Policy& policy, TimeUs now) {
  if (const auto* token = std::get_if<scheduler::Token>(&output)) return DeliverToken(*token);
  if (const auto* finished = std::get_if<Finished>(&output)) return DeliverFinished(*finished, policy, now);
  DeliverRefused(std::get<scheduler::Refused>(output), now);
}

void Clients::DeliverToken(const scheduler::Token& token) {
  Request* request = Find(token.id);
  if (request == nullptr || !request->is_live) {
    return report_.Broken("tokens", absl::StrFormat("a token for request %d, which has ended", token.id));
  }
  const int32_t expected = request->num_known - request->num_prompt();
  if (token.index != expected) {
    return report_.Broken("tokens",
                          absl::StrFormat("request %d gets token %d instead of %d", token.id, token.index, expected));
  }
  if (request->num_known >= request->num_sampled) {
    return report_.Broken("tokens",
                          absl::StrFormat("request %d gets token %d before its step completed", token.id, token.index));
  }
  if (token.token != request->tokens[static_cast<size_t>(request->num_known)]) {
    return report_.Broken(
        "tokens", absl::StrFormat("request %d: token %d is %d, the model says %d", token.id, token.index, token.token,
                                  request->tokens[static_cast<size_t>(request->num_known)]));
  }
  ++request->num_known;
  ++num_tokens_;
  told_.push_back(request);
}

void Clients::DeliverFinished(const Finished& finished, const Policy& policy, TimeUs now) {
  Request* request = Find(finished.id);
  if (request == nullptr || !request->is_live) {
    return report_.Broken("terminal", absl::StrFormat("request %d ends and is not live", finished.id));
  }
  if (is_planning_ && request->is_running() && finished.num_preemptions == request->num_preemptions + 1) {
    ++request->num_preemptions;  // preempted, and then too late to begin again
    ++num_preempted_and_ended_;
  }
  CheckReason(finished, *request, policy, now);
  CheckCounts(finished, *request, now);
  request->is_live = false;
  live_[static_cast<size_t>(request->live_index)] = live_.back();
  live_[static_cast<size_t>(request->live_index)]->live_index = request->live_index;
  live_.pop_back();
  ++num_finished_;
  on_end_(*request);
}

bool Clients::StopsAtLastToken(const Request& request) const {
  const int32_t num_output = request.num_known - request.num_prompt();
  if (num_output <= std::ssize(request.arrival.resumed) || num_output < request.arrival.min_tokens) return false;
  const auto& stops = request.arrival.stop_tokens;
  return std::find(stops.begin(), stops.end(), request.tokens[static_cast<size_t>(request.num_known - 1)]) !=
         stops.end();
}

bool Clients::EndsByItself(const Request& request) const {
  return request.num_known >= request.max_len() || StopsAtLastToken(request);
}

void Clients::CheckReason(const Finished& finished, const Request& request, const Policy& policy, TimeUs now) {
  using Reason = scheduler::Cancel::Reason;
  bool is_right = false;
  switch (finished.reason) {
    case FinishReason::kStop:
      is_right = StopsAtLastToken(request) || (request.is_cancelled && request.cancel_reason == Reason::kStopString);
      break;
    case FinishReason::kLength:
      is_right = request.num_known >= request.max_len() && !StopsAtLastToken(request);
      break;
    case FinishReason::kCancelled:
      is_right = request.is_cancelled && request.cancel_reason == Reason::kClient;
      break;
    case FinishReason::kDeadline:
      is_right = request.arrival.deadline != scheduler::kNever;
      break;
    case FinishReason::kNotFinite:
      is_right = request.was_not_finite;
      break;
    case FinishReason::kFailed:
      is_right = request.has_failed || num_blocks_for(request.max_len()) > blocks_per_dp_group_;
      break;
    case FinishReason::kQuarantined:
      is_right = request.num_losses_holding >= policy.max_worker_losses;
      break;
  }
  if (is_right) return;
  report_.Broken("terminal", absl::StrFormat("request %d ends at %d us for reason %d, which does not hold", finished.id,
                                             now, static_cast<int>(finished.reason)));
}

void Clients::CheckCounts(const Finished& finished, const Request& request, TimeUs now) {
  const scheduler::WaitSplit& wait = finished.wait;
  const std::array parts = {wait.queued_for_share_us,   wait.queued_for_blocks_us, wait.queued_for_slots_us,
                            wait.queued_for_workers_us, wait.prefill_us,           wait.decode_us,
                            wait.preempted_us,          wait.recovering_us};
  TimeUs sum = 0;
  for (const TimeUs part : parts) sum += part;
  if (*std::min_element(parts.begin(), parts.end()) < 0 || sum != now - request.arrived_at) {
    report_.Broken("wait_split", absl::StrFormat("request %d lived %d us, the parts add up to %d", finished.id,
                                                 now - request.arrived_at, sum));
  }
  if ((wait.preempted_us > 0 && request.num_preemptions == 0) ||
      (wait.recovering_us > 0 && request.num_losses_holding == 0)) {
    report_.Broken("wait_split", absl::StrFormat("request %d: %d us preempted, %d us recovering, after %d preemptions "
                                                 "and %d losses",
                                                 finished.id, wait.preempted_us, wait.recovering_us,
                                                 request.num_preemptions, request.num_losses_holding));
  }
  const int32_t num_cached = std::max(0, request.num_cached);
  const auto check = [&](const char* what, int64_t said, int64_t low, int64_t high) {
    if (said >= low && said <= high) return;
    report_.Broken("terminal", absl::StrFormat("request %d ends with %s %d, the books say %d to %d", finished.id, what,
                                               said, low, high));
  };
  CheckWaste(finished, request);
  check("num_prompt_tokens", finished.num_prompt_tokens, request.num_prompt(), request.num_prompt());
  check("num_cached_tokens", finished.num_cached_tokens, num_cached, num_cached);
  check("num_output_tokens", finished.num_output_tokens, request.num_known - request.num_prompt(),
        request.num_known - request.num_prompt());
  // A deadline may strike just before the result that came too late is looked at.
  const int64_t num_unseen = finished.reason == FinishReason::kDeadline ? request.num_rows_completed_last : 0;
  check("num_computed_tokens", finished.num_computed_tokens, request.num_rows_completed - num_unseen,
        request.num_rows_planned);
  check("num_preemptions", finished.num_preemptions, request.num_preemptions, request.num_preemptions);
  const int32_t num_untold = finished.reason == FinishReason::kDeadline ? 1 : 0;  // it struck just before the loss did
  check("num_worker_losses", finished.num_worker_losses, request.num_losses_in_flight - num_untold,
        request.num_losses_holding);
}

// A length is known beforehand and costs no row too many; a stop token is found when the next step, no more, is
// planned.
void Clients::CheckWaste(const Finished& finished, const Request& request) {
  const bool is_stop_token = finished.reason == FinishReason::kStop && !request.is_cancelled;
  if (!is_stop_token && finished.reason != FinishReason::kLength) return;
  const int32_t limit = is_stop_token ? limits_.max_steps_in_flight - 1 : 0;
  if (request.num_in_flight <= limit) return;
  report_.Broken("waste", absl::StrFormat("request %d has ended by itself, and %d steps still compute for it",
                                          finished.id, request.num_in_flight));
}

void Clients::DeliverRefused(const scheduler::Refused& refused, TimeUs now) {
  if (arriving_ == nullptr || was_answered_ || refused.id != arriving_->arrival.id) {
    return report_.Broken("refusal", absl::StrFormat("request %d is refused and did not just arrive", refused.id));
  }
  was_answered_ = true;
  ++num_refused_;
  const bool is_allowed = (allowed_refusals_ & Bit(refused.reason)) != 0;
  const char* const fault = is_allowed ? FindWrongNumber(refused, now) : "the reason does not hold";
  if (fault == nullptr) return;
  report_.Broken(
      "refusal",
      absl::StrFormat("request %d is refused for reason %d (needed %d, limit %d, retry after %d us): %s", refused.id,
                      static_cast<int>(refused.reason), refused.needed, refused.limit, refused.retry_after_us, fault));
}

// What is wrong with the numbers of a refusal whose reason holds; null if nothing is.
const char* Clients::FindWrongNumber(const scheduler::Refused& refused, TimeUs now) const {
  if (refused.reason == RefusalReason::kInvalid || refused.reason == RefusalReason::kDraining) return nullptr;
  if (refused.needed <= refused.limit) return "what is needed is within the limit";
  const scheduler::Arrival& arrival = arriving_->arrival;
  const int64_t wanted = std::ssize(arrival.prompt) + static_cast<int64_t>(arrival.max_tokens);
  switch (refused.reason) {
    case RefusalReason::kTooLong:
      if (refused.needed != wanted || refused.limit != limits_.max_model_len) return "not the numbers in question";
      return refused.retry_after_us != 0 ? "retrying cannot help" : nullptr;
    case RefusalReason::kNeverFits:
      if (refused.limit != blocks_per_dp_group_) return "the limit is not that of a group";
      return refused.retry_after_us != 0 ? "retrying cannot help" : nullptr;
    case RefusalReason::kQueueFull:
      if (refused.limit != limits_.max_num_waiting && refused.limit != limits_.max_waiting_tokens)
        return "no such limit";
      return refused.retry_after_us <= 0 ? "no hint when to retry" : nullptr;
    case RefusalReason::kTenantQueueFull:
      if (refused.limit != tenant_limit_) return "not the tenant's limit";
      return refused.retry_after_us <= 0 ? "no hint when to retry" : nullptr;
    default:
      break;
  }
  const TimeUs left = arrival.deadline - now;
  return refused.limit != std::max<TimeUs>(0, left) && refused.limit != left ? "the limit is not the time left"
                                                                             : nullptr;
}

void Clients::AfterApply(TimeUs now) {
  if (arriving_ != nullptr && !was_answered_) {
    if (required_refusals_ != 0) {
      report_.Broken("refusal",
                     absl::StrFormat("request %d is admitted against rule set %#x (%d waiting, %d of its "
                                     "tenant)",
                                     arriving_->arrival.id, required_refusals_, num_waiting_, num_waiting_of_tenant_));
    }
    arriving_->is_live = true;
    arriving_->live_index = static_cast<int32_t>(live_.size());
    live_.push_back(arriving_);
    ++num_admitted_;
  }
  arriving_ = nullptr;
  is_planning_ = false;
  CheckDue(now);
  for (const Request* request : must_end_) {
    if (request->is_live) {
      report_.Broken("terminal",
                     absl::StrFormat("request %d goes on after a cancel or too many losses", request->id()));
    }
  }
  for (const Request* request : told_) {
    if (request->is_live && EndsByItself(*request)) {
      report_.Broken("terminal", absl::StrFormat("request %d has all its tokens and goes on", request->id()));
    }
  }
  must_end_.clear();
  told_.clear();
}

void Clients::CheckDue(TimeUs now) {
  for (const Due& due : due_) {
    const Request& request = *due.request;
    const bool is_late = now >= request.arrival.deadline;
    if (due.is_broken ? !request.is_live : request.num_known == due.num_known || (is_late && !request.is_live))
      continue;
    report_.Broken("tokens", absl::StrFormat("request %d: %s", request.id(),
                                             due.is_broken ? "a broken row does not end it"
                                                           : "its step completed and its token was not delivered"));
  }
  due_.clear();
}

void Clients::AfterPlan(TimeUs now, TimeUs wake_time) {
  TimeUs earliest = scheduler::kNever;
  for (const Request* request : live_) earliest = std::min(earliest, request->arrival.deadline);
  if (earliest < now) {
    report_.Broken("deadline", absl::StrFormat("a request lives %d us after its deadline", now - earliest));
  }
  if (wake_time > earliest) report_.Broken("deadline", "the core will not wake for the earliest deadline");
  if (wake_time < now) report_.Broken("deadline", "the core asks to be woken in the past");
}

}  // namespace weir::sim
