#include "scheduler/service/worker_group.h"

#include <spdlog/spdlog.h>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <utility>

#include "scheduler/core/check.h"

namespace weir::scheduler {
namespace {

constexpr TimeUs kAnswerMargin = 500'000;  // beyond the deadline that a rank has itself

// Greater than any epoch before, those of an earlier life of this process included.
Epoch NextEpoch(Epoch last) {
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  return std::max<Epoch>(last + 1, std::chrono::duration_cast<std::chrono::milliseconds>(since).count());
}

std::string RandomToken() {
  std::random_device device;
  std::string token;
  while (token.size() < 32) {
    const unsigned word = device();
    for (int byte = 0; byte < 4; ++byte) token.push_back(static_cast<char>(word >> (8 * byte)));
  }
  return token;
}

bool IsLocal(const std::string& address) {
  return address.starts_with("unix:") || address.starts_with("127.") || address.starts_with("localhost:") ||
         address.starts_with("[::1]");
}

// "expected, found" of the first thing that two hellos, or a hello and the sizes in use, do not share.
template <typename T>
std::string Difference(const char* what, T found, T expected) {
  if (found == expected) return "";
  return std::string(what) + " is " + std::to_string(found) + " and not " + std::to_string(expected);
}

std::string FindDifference(const RankHello& a, const RankHello& b) {
  if (a.build != b.build) return "its build is " + a.build + " and not " + b.build;
  for (std::string difference :
       {Difference("manifest_hash", a.manifest_hash, b.manifest_hash), Difference("tensor_parallel_size", a.tp, b.tp),
        Difference("data_parallel_size", a.dp, b.dp), Difference("block_size", a.block_size, b.block_size),
        Difference("max_num_seqs", a.max_num_seqs, b.max_num_seqs),
        Difference("max_num_batched_tokens", a.max_num_batched_tokens, b.max_num_batched_tokens),
        Difference("max_model_len", a.max_model_len, b.max_model_len),
        Difference("vocab_size", a.vocab_size, b.vocab_size)}) {
    if (!difference.empty()) return difference;
  }
  return "";
}

std::string FindDifference(const GroupShape& shape, const GroupShape& required) {
  for (const std::string& difference :
       {Difference("manifest_hash", shape.manifest_hash, required.manifest_hash),
        Difference("block_size", shape.limits.block_size, required.limits.block_size),
        Difference("max_num_seqs", shape.limits.max_num_seqs, required.limits.max_num_seqs),
        Difference("max_num_batched_tokens", shape.limits.max_num_batched_tokens,
                   required.limits.max_num_batched_tokens),
        Difference("max_model_len", shape.limits.max_model_len, required.limits.max_model_len),
        Difference("vocab_size", shape.vocab_size, required.vocab_size)}) {
    if (!difference.empty()) return difference + ", with which this scheduler began; restart it to serve other ranks";
  }
  return "";
}

std::string FindImpossible(const RankHello& hello) {
  if (hello.block_size < 1) return "block_size must be at least 1";
  if (hello.max_num_seqs < 1) return "max_num_seqs must be at least 1";
  if (hello.max_num_batched_tokens < hello.max_num_seqs) return "max_num_batched_tokens is less than max_num_seqs";
  if (hello.max_model_len < 2) return "max_model_len must be at least 2";
  if (hello.vocab_size < 1) return "vocab_size must be at least 1";
  if (hello.num_blocks < 1) return "it has no cache blocks";
  return "";
}

}  // namespace

WorkerGroup::WorkerGroup(GroupOptions options, RankPort* port)
    : options_(std::move(options)),
      port_(port),
      ranks_(options_.addresses.size()),
      form_retry_us_(options_.min_retry_us),
      pace_(options_.step_deadline_us, options_.unknown_step_deadline_us) {
  for (Rank& rank : ranks_) rank.retry_us = options_.min_retry_us;
}

// ---- events ----

void WorkerGroup::On(TimeUs now, RankEvent event, std::vector<News>& news) {
  if (ranks_[event.rank].stream != event.stream) return;  // of a stream that has been given up
  ranks_[event.rank].heard_at = now;
  std::visit([&](auto& what) { Take(now, event.rank, what, news); }, event.what);
  TryForm(now);
}

void WorkerGroup::Take(TimeUs, int32_t rank, const RankLoading& loading, std::vector<News>&) {
  ranks_[rank].loading = loading;
}

void WorkerGroup::Take(TimeUs now, int32_t rank, const RankHello& hello, std::vector<News>& news) {
  if (ranks_[rank].hello.has_value()) {
    if (state_ == State::kStanding) Lose(now, "rank " + std::to_string(rank) + ": a second hello", news);
    return Drop(now, rank, "a second hello", false);
  }
  spdlog::info("rank {}: ready: {}, {} blocks of {} tokens, build {}", rank, hello.device, hello.num_blocks,
               hello.block_size, hello.build);
  ranks_[rank].hello = hello;
  ranks_[rank].retry_us = options_.min_retry_us;
  mismatch_.clear();
}

void WorkerGroup::Take(TimeUs now, int32_t rank, const RankFormed& formed, std::vector<News>& news) {
  if (state_ != State::kForming || formed.epoch != epoch_) return;
  ranks_[rank].has_answered = ranks_[rank].has_formed = true;
  const auto has_formed = [](const Rank& r) { return r.has_formed; };
  if (std::all_of(ranks_.begin(), ranks_.end(), has_formed)) return Stand(now, news);
  EndForming(now);
}

void WorkerGroup::Take(TimeUs now, int32_t rank, RankResult& result, std::vector<News>& news) {
  if (state_ != State::kStanding || result.epoch != epoch_) return;
  if (std::string misfit = steps_->Take(rank, std::move(result)); !misfit.empty()) {
    Lose(now, misfit, news);
    return Drop(now, rank, misfit, false);
  }
  for (CompletedStep step; steps_->PopCompleted(now, step);) {
    pace_.Record(step.num_rows, step.took_us);
    news.emplace_back(std::move(step));
  }
}

void WorkerGroup::Take(TimeUs now, int32_t rank, const RankFailed& failed, std::vector<News>& news) {
  if (failed.epoch != epoch_) return;
  const std::string what = "rank " + std::to_string(rank) + ": " + failed.reason;
  if (state_ == State::kStanding) return Lose(now, what, news);
  if (state_ != State::kForming) return;
  spdlog::warn("epoch {}: not formed: {}", epoch_, what);
  ranks_[rank].has_answered = true;
  EndForming(now);
}

void WorkerGroup::Take(TimeUs now, int32_t rank, const RankGone& gone, std::vector<News>& news) {
  Rank& lost = ranks_[rank];
  const bool was_up = lost.hello.has_value();
  if (was_up || lost.last_words != gone.reason) spdlog::warn("rank {}: not connected: {}", rank, gone.reason);
  if (gone.has_refused) lost.retry_us = options_.max_retry_us;
  OpenLater(now, lost, gone.reason);
  if (state_ == State::kStanding) return Lose(now, "rank " + std::to_string(rank) + " is gone: " + gone.reason, news);
  if (state_ == State::kForming) {
    state_ = State::kApart;  // the others hear of the next epoch
    form_deadline_ = kNever;
  }
}

// ---- time ----

void WorkerGroup::OnTime(TimeUs now, std::vector<News>& news) {
  for (int32_t rank = 0; rank < num_ranks(); ++rank) {
    if (now >= HelloDeadline(ranks_[rank])) Drop(now, rank, "says neither hello nor how far it has loaded", false);
    Rank& closed = ranks_[rank];
    if (closed.stream != 0 || now < closed.open_at) continue;
    closed.stream = port_->Open(rank);
    closed.heard_at = now;
  }
  if (state_ == State::kStanding && now >= StepDeadline()) {
    std::string silent;
    for (const int32_t rank : steps_->Missing()) silent += (silent.empty() ? "" : ", ") + std::to_string(rank);
    Lose(now,
         "no result of step " + std::to_string(steps_->step()) + " from rank " + silent + " within " +
             std::to_string((now - steps_->waiting_since()) / 1000) + " ms",
         news);
  }
  if (state_ == State::kForming && now >= form_deadline_) {
    for (int32_t rank = 0; rank < num_ranks(); ++rank) {
      if (!ranks_[rank].has_answered) Drop(now, rank, "did not answer while the group formed", true);
    }
    EndForming(now);
  }
  TryForm(now);
}

TimeUs WorkerGroup::HelloDeadline(const Rank& rank) const {
  return rank.stream == 0 || rank.hello ? kNever : rank.heard_at + options_.silence_deadline_us;
}

TimeUs WorkerGroup::StepDeadline() const {
  if (!steps_ || steps_->empty()) return kNever;
  return steps_->waiting_since() + pace_.DeadlineUs(steps_->num_rows());
}

TimeUs WorkerGroup::wake_time() const {
  TimeUs wake = state_ == State::kForming ? form_deadline_ : kNever;
  if (state_ == State::kStanding) wake = StepDeadline();
  bool are_all_up = true;
  for (const Rank& rank : ranks_) {
    wake = std::min(wake, rank.stream == 0 ? rank.open_at : HelloDeadline(rank));
    are_all_up = are_all_up && rank.hello.has_value();
  }
  if (state_ == State::kApart && are_all_up && mismatch_.empty()) wake = std::min(wake, form_not_before_);
  return wake;
}

// ---- forming ----

void WorkerGroup::TryForm(TimeUs now) {
  const auto is_up_now = [](const Rank& rank) { return rank.hello.has_value(); };
  if (state_ != State::kApart || now < form_not_before_ || !mismatch_.empty()) return;
  if (!std::all_of(ranks_.begin(), ranks_.end(), is_up_now)) return;
  mismatch_ = FindMismatch();
  if (!mismatch_.empty()) {
    spdlog::error("the ranks form no group: {}", mismatch_);
    return;
  }
  epoch_ = NextEpoch(epoch_);
  GroupForm form{.epoch = epoch_,
                 .token = RandomToken(),
                 .collective_deadline_us = options_.collective_deadline_us,
                 .connect_deadline_us = options_.connect_deadline_us};
  for (const Rank& rank : ranks_) form.addresses.push_back(rank.hello->communicator_address);
  for (int32_t rank = 0; rank < num_ranks(); ++rank) {
    ranks_[rank].has_answered = ranks_[rank].has_formed = false;
    port_->FormGroup(rank, form);
  }
  state_ = State::kForming;
  form_deadline_ = now + options_.connect_deadline_us + kAnswerMargin;
}

std::string WorkerGroup::FindMismatch() const {
  for (int32_t rank = 0; rank < num_ranks(); ++rank) {
    if (std::string mismatch = FindMismatch(rank); !mismatch.empty()) {
      return "the rank at " + options_.addresses[rank] + ": " + mismatch;
    }
  }
  return required_ ? FindDifference(Shape(), *required_) : "";
}

std::string WorkerGroup::FindMismatch(int32_t rank) const {
  const RankHello& hello = *ranks_[rank].hello;
  if (std::string impossible = FindImpossible(hello); !impossible.empty()) return impossible;
  if (hello.rank != rank) {
    return "it is rank " + std::to_string(hello.rank) + ", not rank " + std::to_string(rank) +
           "; list the addresses in rank order";
  }
  if (static_cast<int64_t>(hello.tp) * hello.dp != num_ranks()) {
    return "it belongs to a group of " + std::to_string(hello.tp) + " x " + std::to_string(hello.dp) + " ranks, but " +
           std::to_string(num_ranks()) + " addresses are listed";
  }
  return FindDifference(hello, *ranks_[0].hello);
}

GroupShape WorkerGroup::Shape() const {
  const RankHello& hello = *ranks_[0].hello;
  GroupShape shape{.manifest_hash = hello.manifest_hash,
                   .vocab_size = hello.vocab_size,
                   .eos_token_ids = hello.eos_token_ids,
                   .tp = hello.tp,
                   .dp = hello.dp};
  shape.limits.block_size = hello.block_size;
  shape.limits.max_num_seqs = hello.max_num_seqs;
  shape.limits.max_num_batched_tokens = hello.max_num_batched_tokens;
  shape.limits.max_model_len = std::min<int64_t>(hello.max_model_len, (int64_t{1} << 31) - 2);
  int64_t num_blocks = (int64_t{1} << 31) - 1;
  for (const Rank& rank : ranks_) num_blocks = std::min(num_blocks, rank.hello->num_blocks);
  shape.blocks_per_dp_group = static_cast<int32_t>(num_blocks);
  return shape;
}

// Waits until every rank has said how it went: who says nothing is hung.
void WorkerGroup::EndForming(TimeUs now) {
  const auto waits = [](const Rank& rank) { return rank.hello.has_value() && !rank.has_answered; };
  if (std::any_of(ranks_.begin(), ranks_.end(), waits)) return;
  state_ = State::kApart;
  form_deadline_ = kNever;
  form_not_before_ = now + form_retry_us_;
  form_retry_us_ = std::min(2 * form_retry_us_, options_.max_retry_us);
}

void WorkerGroup::Stand(TimeUs now, std::vector<News>& news) {
  state_ = State::kStanding;
  form_deadline_ = kNever;
  form_retry_us_ = options_.min_retry_us;
  const GroupShape shape = Shape();
  steps_.emplace(num_ranks(), shape.tp, shape.vocab_size);
  const TimeUs took = lost_at_ ? now - *lost_at_ : 0;
  spdlog::info("epoch {}: the group stands: tp {} x dp {}, {} blocks a group{}", epoch_, shape.tp, shape.dp,
               shape.blocks_per_dp_group, lost_at_ ? ", " + std::to_string(took / 1000) + " ms after the loss" : "");
  news.emplace_back(Formed{.epoch = epoch_, .shape = shape, .took_us = took});
  lost_at_.reset();
}

void WorkerGroup::Lose(TimeUs now, const std::string& reason, std::vector<News>& news) {
  spdlog::warn("epoch {}: the group is lost: {}", epoch_, reason);
  state_ = State::kApart;
  steps_.reset();
  lost_at_ = now;
  form_not_before_ = now;
  news.emplace_back(Lost{.epoch = epoch_, .reason = reason});
}

void WorkerGroup::Drop(TimeUs now, int32_t rank, const std::string& reason, bool is_hung) {
  Rank& dropped = ranks_[rank];
  spdlog::warn("rank {}: dropped: {}", rank, reason);
  if (is_hung && options_.kills_hung_local_ranks && dropped.hello && dropped.hello->pid != 0 &&
      IsLocal(options_.addresses[rank])) {
    spdlog::warn("rank {}: hung; killing process {}", rank, dropped.hello->pid);
    port_->Kill(dropped.hello->pid);
  }
  port_->Close(rank);
  OpenLater(now, dropped, reason);
}

void WorkerGroup::OpenLater(TimeUs now, Rank& rank, const std::string& reason) {
  rank.stream = 0;
  rank.hello.reset();
  rank.loading = {};
  rank.last_words = reason;
  rank.open_at = now + rank.retry_us;
  rank.retry_us = std::min(2 * rank.retry_us, options_.max_retry_us);
}

// ---- steps ----

void WorkerGroup::Send(TimeUs now, const StepPlan& plan, const std::shared_ptr<const worker::v1::RunRequest>& message) {
  WEIR_CHECK(stands() && plan.epoch == epoch_, "plans go to the group that stands");
  steps_->Begin(now, plan);
  for (int32_t rank = 0; rank < num_ranks(); ++rank) port_->Send(rank, message);
}

std::string WorkerGroup::WhyApart() const {
  if (stands()) return "";
  if (!mismatch_.empty()) return mismatch_;
  for (int32_t rank = 0; rank < num_ranks(); ++rank) {
    const Rank& absent = ranks_[rank];
    if (absent.hello) continue;
    const std::string who = "rank " + std::to_string(rank) + " at " + options_.addresses[rank];
    if (absent.loading.bytes_total > 0) {
      return who + " loads: " + std::to_string(100 * absent.loading.bytes_done / absent.loading.bytes_total) + " %";
    }
    return who + " is not connected" + (absent.last_words.empty() ? "" : ": " + absent.last_words);
  }
  return "the group forms";
}

}  // namespace weir::scheduler
