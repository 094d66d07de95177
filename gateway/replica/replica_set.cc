#include "gateway/replica/replica_set.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

namespace weir::gateway {
namespace {

constexpr TimeUs kFirstBackoffUs = 100'000;
constexpr TimeUs kLongestBackoffUs = 2'000'000;
constexpr TimeUs kRefusedRetryUs = 200'000;  // a parked request that was refused tries again after this

// By how many requests, besides a quarter, a replica that holds a prompt's beginning may have more to do than the one
// with the least: a wait of about a prefill, which is what finding the beginning saves.
constexpr int64_t kAffinitySlack = 4;

bool IsPassing(Refusal::Reason reason) {
  return reason == Refusal::Reason::kQueueFull || reason == Refusal::Reason::kTenantQueueFull ||
         reason == Refusal::Reason::kDraining || reason == Refusal::Reason::kNoWorkers;
}

// The scheduler's clock and ours need not run alike: what it reports is held to what we have measured.
WaitSplit HeldTo(WaitSplit wait, int64_t elapsed_us) {
  int64_t excess = wait.sum() - elapsed_us;
  for (const auto part : WaitSplit::kParts()) {
    const int64_t cut = std::clamp<int64_t>(excess, 0, std::max<int64_t>(wait.*part, 0));
    wait.*part -= cut;
    excess -= cut;
  }
  return wait;
}

Ending Because(EndReason reason, std::string error = "") { return {.reason = reason, .error = std::move(error)}; }

}  // namespace

ReplicaSet::ReplicaSet(Options options, ReplicaPort* port)
    : options_(std::move(options)), port_(port), replicas_(options_.addresses.size()) {
  for (Replica& replica : replicas_) replica.backoff_us = kFirstBackoffUs;
}

// ---- what callers ask ----

ReplicaSet::Taken ReplicaSet::Submit(TimeUs now, std::shared_ptr<const Submission> submission,
                                     std::shared_ptr<OutputSink> sink) {
  std::vector<uint64_t> prefix_hashes;
  if (replicas_.size() > 1) {
    prefix_hashes = PrefixAffinity::Hashes(submission->cache_namespace_key, submission->prompt);
  }
  std::lock_guard lock(mutex_);
  const uint64_t ticket = next_number_++;
  Request& request = requests_[ticket];
  request.ticket = ticket;
  request.submission = std::move(submission);
  request.sink = std::move(sink);
  request.prefix_hashes = std::move(prefix_hashes);
  request.refused_by.assign(replicas_.size(), false);
  request.attempt_began = now;
  const int32_t index = Pick(request);
  if (index >= 0 && Send(now, request, index)) return {.ticket = ticket};
  requests_.erase(ticket);
  const bool is_draining = std::any_of(replicas_.begin(), replicas_.end(), [](const Replica& replica) {
    return replica.state == Replica::State::kJoined && replica.view.is_draining;
  });
  return {.why = is_draining ? NotTaken::kDraining : NotTaken::kNoReplica};
}

void ReplicaSet::Cancel(TimeUs now, uint64_t ticket, bool is_stop) {
  Deliveries deliveries;
  {
    std::lock_guard lock(mutex_);
    const auto found = requests_.find(ticket);
    if (found == requests_.end() || found->second.is_cancelled) return;
    Request& request = found->second;
    request.is_cancelled = true;
    request.is_stop = is_stop;
    if (request.replica >= 0) {
      port_->Cancel(request.replica, request.attempt, is_stop);
    } else {
      End(now, request, Because(is_stop ? EndReason::kStop : EndReason::kCancelled), deliveries);
    }
  }
  Deliver(now, std::move(deliveries));
}

ReplicaSet::View ReplicaSet::view() const {
  std::lock_guard lock(mutex_);
  View view{.num_requests = static_cast<int64_t>(requests_.size()),
            .num_parked = NumParked(),
            .num_replays = num_replays_,
            .num_to_prefix = num_to_prefix_};
  for (const Replica& replica : replicas_) {
    if (replica.state != Replica::State::kJoined || replica.is_other_model) continue;
    ++view.num_joined;
    if (replica.view.is_ready && !replica.view.is_draining) ++view.num_ready;
  }
  return view;
}

int64_t ReplicaSet::max_model_len() const {
  std::lock_guard lock(mutex_);
  int64_t shortest = 0;
  for (const Replica& replica : replicas_) {
    if (replica.state != Replica::State::kJoined || replica.is_other_model || !replica.view.is_known()) continue;
    if (shortest == 0 || replica.view.max_model_len < shortest) shortest = replica.view.max_model_len;
  }
  return shortest;
}

// ---- what replicas say ----

void ReplicaSet::On(TimeUs now, ReplicaEvent event) {
  Deliveries deliveries;
  {
    std::lock_guard lock(mutex_);
    Replica& replica = replicas_[event.replica];
    if (event.stream != replica.stream) return;  // of an earlier stream
    replica.heard_at = now;
    std::visit([&](auto& what) { Take(now, event.replica, what, deliveries); }, event.what);
  }
  Deliver(now, std::move(deliveries));
}

void ReplicaSet::Take(TimeUs now, int32_t index, const ReplicaJoined& joined, Deliveries& deliveries) {
  Replica& replica = replicas_[index];
  replica.state = Replica::State::kJoined;
  replica.polled_at = now;
  replica.backoff_us = kFirstBackoffUs;
  replica.last_reason.clear();
  TakeView(index, joined.view);
  spdlog::info("replica {}: joined, build {}, {}", options_.addresses[index], joined.view.build,
               joined.view.is_ready ? "ready" : "not ready yet");
  SendParked(now, deliveries);
}

void ReplicaSet::Take(TimeUs now, int32_t index, const ReplicaPolled& polled, Deliveries& deliveries) {
  if (replicas_[index].state != Replica::State::kJoined) return;
  const bool was_ready = replicas_[index].view.is_ready;
  TakeView(index, polled.view);
  if (was_ready != polled.view.is_ready) {
    spdlog::info("replica {}: {}", options_.addresses[index], polled.view.is_ready ? "ready" : "not ready");
  }
  SendParked(now, deliveries);
}

void ReplicaSet::TakeView(int32_t index, const ReplicaView& view) {
  Replica& replica = replicas_[index];
  replica.view = view;
  replica.num_since_poll = 0;
  const bool is_other = view.is_known() && view.vocab_size != options_.vocab_size;
  if (is_other && !replica.is_other_model) {
    spdlog::error("replica {}: serves a model with vocab_size {}, not {}: it gets no requests",
                  options_.addresses[index], view.vocab_size, options_.vocab_size);
  }
  replica.is_other_model = is_other;
}

void ReplicaSet::Take(TimeUs now, int32_t index, ReplicaOutput& output, Deliveries& deliveries) {
  for (const uint64_t attempt : output.admitted) {
    Request* request = Find(attempt);
    if (request == nullptr || request->was_admitted) continue;
    request->was_admitted = true;
    OutputFor(*request, deliveries).is_admitted = true;
  }
  for (ReplicaOutput::Token& token : output.tokens) TakeToken(now, index, token, deliveries);
  for (ReplicaOutput::End& end : output.ends) TakeEnd(now, end, deliveries);
}

void ReplicaSet::TakeToken(TimeUs now, int32_t index, ReplicaOutput::Token& token, Deliveries& deliveries) {
  Request* request = Find(token.attempt);
  if (request == nullptr) return;
  if (token.token.index < request->output.size()) return;  // is there already
  if (token.token.index > request->output.size()) {
    spdlog::error("request {}: replica {} skips output tokens; its stream is closed", request->submission->request_id,
                  options_.addresses[index]);
    replicas_[index].is_closing = true;
    return port_->Close(index);
  }
  request->output.push_back(token.token.token);
  if (request->first_token_at == 0) request->first_token_at = now;
  request->last_token_at = now;
  OutputFor(*request, deliveries).tokens.push_back(std::move(token.token));
}

void ReplicaSet::TakeEnd(TimeUs now, ReplicaOutput::End& end, Deliveries& deliveries) {
  Request* request = Find(end.attempt);
  if (request == nullptr) return;
  CloseAttempt(now, *request, end.ending.wait);
  Leave(*request);
  const bool is_refused = end.ending.reason == EndReason::kRefused && end.ending.refusal.has_value();
  if (is_refused && !request->is_cancelled && TakeElsewhere(now, *request, *end.ending.refusal)) return;
  End(now, *request, std::move(end.ending), deliveries);
}

// A refusal of one replica need not be another's, and one that was promised an answer waits.
bool ReplicaSet::TakeElsewhere(TimeUs now, Request& request, const Refusal& refusal) {
  if (!IsPassing(refusal.reason)) return false;
  if (refusal.reason != Refusal::Reason::kTenantQueueFull) {
    const int32_t index = Pick(request);
    if (index >= 0 && Send(now, request, index)) return true;
  }
  if (!request.was_admitted && request.num_replays == 0) return false;
  Park(now, request, now + std::max(refusal.retry_after_ms * 1000, kRefusedRetryUs));
  return true;
}

void ReplicaSet::Take(TimeUs now, int32_t index, const ReplicaGone& gone, Deliveries& deliveries) {
  Replica& replica = replicas_[index];
  if (gone.reason != replica.last_reason) {
    spdlog::warn("replica {}: {}{}", options_.addresses[index],
                 replica.state == Replica::State::kJoined ? "lost: " : "not there: ", gone.reason);
  }
  replica.last_reason = gone.reason;
  if (replica.state == Replica::State::kJoined) affinity_.Forget(index);
  replica.state = Replica::State::kApart;
  replica.stream = 0;
  replica.view = {};
  replica.is_closing = false;
  replica.num_since_poll = 0;
  // A tenth more or less, so that gateways do not come back as one.
  const auto jitter = static_cast<TimeUs>(jitter_() % static_cast<uint64_t>(replica.backoff_us / 5));
  replica.retry_at = now + replica.backoff_us - replica.backoff_us / 10 + jitter;
  replica.backoff_us = std::min(2 * replica.backoff_us, kLongestBackoffUs);
  for (auto request = requests_.begin(); request != requests_.end();) {
    Request& lost = (request++)->second;  // its end removes it
    if (lost.replica == index) Lose(now, lost, deliveries);
  }
  SendParked(now, deliveries);
}

void ReplicaSet::Lose(TimeUs now, Request& request, Deliveries& deliveries) {
  CloseAttempt(now, request, {});
  Leave(request);
  const std::vector<TokenId>& output = request.output;
  if (!output.empty() && request.submission->IsStop(output.back(), output.size() - 1)) {
    return End(now, request, Because(EndReason::kStop), deliveries);
  }
  if (static_cast<int64_t>(output.size()) >= request.submission->max_tokens) {
    return End(now, request, Because(EndReason::kLength), deliveries);
  }
  if (request.is_cancelled) {
    return End(now, request, Because(request.is_stop ? EndReason::kStop : EndReason::kCancelled), deliveries);
  }
  if (request.num_replays >= options_.max_replays) {
    return End(now, request,
               Because(EndReason::kReplicaLost,
                       "the request lost its replica " + std::to_string(request.num_replays + 1) + " times"),
               deliveries);
  }
  ++request.num_replays;
  ++num_replays_;
  Park(now, request, now);
}

// ---- time ----

void ReplicaSet::OnTime(TimeUs now) {
  Deliveries deliveries;
  {
    std::lock_guard lock(mutex_);
    for (int32_t index = 0; index < static_cast<int32_t>(replicas_.size()); ++index) KeepStream(now, index);
    SendParked(now, deliveries);
  }
  Deliver(now, std::move(deliveries));
}

void ReplicaSet::KeepStream(TimeUs now, int32_t index) {
  Replica& replica = replicas_[index];
  if (replica.state == Replica::State::kApart) {
    if (now < replica.retry_at) return;
    replica.state = Replica::State::kOpening;
    replica.heard_at = now;
    replica.stream = port_->Open(index);
    return;
  }
  if (!replica.is_closing && now - replica.heard_at > options_.replica_timeout_us) {
    spdlog::warn("replica {}: has said nothing for {} ms", options_.addresses[index], (now - replica.heard_at) / 1000);
    replica.is_closing = true;
    port_->Close(index);
  }
  if (replica.state == Replica::State::kJoined && now - replica.polled_at >= options_.poll_interval_us) {
    replica.polled_at = now;
    port_->Poll(index);
  }
}

int64_t ReplicaSet::NumParked() const {
  auto num_parked = static_cast<int64_t>(requests_.size());
  for (const Replica& replica : replicas_) num_parked -= replica.num_requests;
  return num_parked;
}

void ReplicaSet::SendParked(TimeUs now, Deliveries& deliveries) {
  if (NumParked() == 0) return;
  for (auto next = requests_.begin(); next != requests_.end();) {
    Request& request = (next++)->second;  // its end removes it
    if (request.replica >= 0) continue;
    if (request.submission->deadline && now >= *request.submission->deadline) {
      End(now, request, Because(EndReason::kDeadline), deliveries);
      continue;
    }
    if (now - request.parked_at > options_.recovery_timeout_us) {
      End(now, request, Because(EndReason::kReplicaLost, "no replica took the request over in time"), deliveries);
      continue;
    }
    if (now < request.not_before) continue;
    const int32_t index = Pick(request);
    if (index >= 0 && !Send(now, request, index)) Park(now, request, now + kRefusedRetryUs);
  }
}

// ---- parts ----

// The ready replica with the least to do; without a ready one, one that has had workers: it queues, and says so.  -1:
// none.
int32_t ReplicaSet::Pick(const Request& request) const {
  const int32_t least = LeastLoaded(request);
  const int32_t holder = affinity_.Find(request.prefix_hashes);
  if (least < 0 || holder < 0 || !CanTake(request, holder) || !replicas_[holder].view.is_ready) return least;
  const int64_t load = LoadOf(least);
  return LoadOf(holder) <= load + load / 4 + kAffinitySlack ? holder : least;
}

int32_t ReplicaSet::LeastLoaded(const Request& request) const {
  int32_t best = -1;
  std::pair<bool, int64_t> best_score;
  for (int32_t index = 0; index < static_cast<int32_t>(replicas_.size()); ++index) {
    if (!CanTake(request, index)) continue;
    const std::pair<bool, int64_t> score{!replicas_[index].view.is_ready, LoadOf(index)};
    if (best < 0 || score < best_score) {
      best = index;
      best_score = score;
    }
  }
  return best;
}

bool ReplicaSet::CanTake(const Request& request, int32_t index) const {
  const Replica& replica = replicas_[index];
  return replica.state == Replica::State::kJoined && !replica.is_closing && !replica.is_other_model &&
         replica.view.is_known() && !replica.view.is_draining && !request.refused_by[index];
}

int64_t ReplicaSet::LoadOf(int32_t index) const {
  const Replica& replica = replicas_[index];
  return std::max(replica.num_requests, replica.view.num_requests + replica.num_since_poll);
}

bool ReplicaSet::Send(TimeUs now, Request& request, int32_t index) {
  const std::optional<TimeUs> deadline = request.submission->deadline;
  std::optional<int64_t> deadline_ms;
  if (deadline) deadline_ms = std::max<int64_t>((*deadline - now) / 1000, 1);
  const uint64_t attempt = next_number_++;
  request.refused_by[index] = true;  // until it has taken it
  if (!port_->Submit(index, attempt, *request.submission, request.output, deadline_ms)) return false;
  if (affinity_.Find(request.prefix_hashes) == index) ++num_to_prefix_;
  affinity_.Remember(request.prefix_hashes, index);
  now = std::max(now, request.attempt_began);
  request.wait.network_us += now - request.attempt_began;
  request.attempt_began = now;
  request.first_token_at = request.last_token_at = 0;
  request.replica = index;
  request.attempt = attempt;
  attempts_[attempt] = request.ticket;
  ++replicas_[index].num_requests;
  ++replicas_[index].num_since_poll;
  return true;
}

void ReplicaSet::Leave(Request& request) {
  attempts_.erase(request.attempt);
  --replicas_[request.replica].num_requests;
  request.replica = -1;
}

// Accounts for the time until now.  What a lost replica cannot report is counted by what came of it: the first token
// ends the prompt's part, the last one the output's.
void ReplicaSet::CloseAttempt(TimeUs now, Request& request, const WaitSplit& reported) {
  now = std::max(now, request.attempt_began);  // threads read the clock before they take the lock
  const int64_t elapsed_us = now - request.attempt_began;
  WaitSplit wait = HeldTo(reported, elapsed_us);
  if (wait.sum() == 0 && request.first_token_at > 0) {
    wait.prefill_us = request.first_token_at - request.attempt_began;
    wait.decode_us = request.last_token_at - request.first_token_at;
  }
  wait.network_us += elapsed_us - wait.sum();
  request.wait += wait;
  request.attempt_began = now;
}

void ReplicaSet::Park(TimeUs now, Request& request, TimeUs not_before) {
  if (request.parked_at == 0) request.parked_at = now;
  request.not_before = not_before;
  request.refused_by.assign(replicas_.size(), false);
}

void ReplicaSet::End(TimeUs now, Request& request, Ending ending, Deliveries& deliveries) {
  request.wait.network_us += std::max<TimeUs>(now - request.attempt_began, 0);
  ending.wait = request.wait;
  OutputFor(request, deliveries).end = std::move(ending);
  requests_.erase(request.ticket);
}

ReplicaSet::Request* ReplicaSet::Find(uint64_t attempt) {
  const auto found = attempts_.find(attempt);
  return found == attempts_.end() ? nullptr : &requests_.at(found->second);
}

OutputSink::Output& ReplicaSet::OutputFor(const Request& request, Deliveries& deliveries) {
  const auto [entry, is_new] = deliveries.of_ticket.try_emplace(request.ticket, deliveries.list.size());
  if (is_new) deliveries.list.push_back({.sink = request.sink});
  return deliveries.list[entry->second].output;
}

void ReplicaSet::Deliver(TimeUs now, Deliveries deliveries) {
  for (Delivery& delivery : deliveries.list) delivery.sink->OnOutput(now, std::move(delivery.output));
}

}  // namespace weir::gateway
