#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <random>

#include "tests/scheduler/fake_workers.h"

// Seeded storms of events against workers that notice every wrong row.  Small sizes, so that everything runs short all
// the time.  About 10 s in all.

namespace weir::scheduler {
namespace {

struct Request {
  Arrival arrival;
  std::vector<TokenId> tokens;
  int32_t num_terminals = 0;
  int32_t num_emitted = 0;
};

class Storm {
 public:
  explicit Storm(uint64_t seed)
      : random_(seed), limits_(DrawLimits()), policy_(DrawPolicy()), core_(limits_, policy_) {}

  std::string Run(int num_events) {
    Form();
    for (int i = 0; i < num_events && error_.empty(); ++i) Happen();
    Heal();
    return error_;
  }

  uint64_t num_emitted = 0, num_preempted = 0, num_cached = 0;

 private:
  int64_t Draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_); }
  bool Chance(double p) { return std::uniform_real_distribution<double>(0, 1)(random_) < p; }

  Limits DrawLimits() {
    Limits limits;
    limits.block_size = static_cast<int32_t>(Draw(1, 6));
    limits.max_num_seqs = static_cast<int32_t>(Draw(1, 12));
    limits.max_num_batched_tokens = limits.max_num_seqs + static_cast<int32_t>(Draw(0, 40));
    limits.max_model_len = 80;
    limits.max_steps_in_flight = static_cast<int32_t>(Draw(1, 3));
    limits.max_num_waiting = 60;
    return limits;
  }

  Policy DrawPolicy() {
    Policy policy;
    for (int i = 0; i < 4; ++i) policy.tenants.push_back({.weight = Chance(0.3) ? 2.0 : 1.0, .max_num_waiting = 30});
    policy.max_prompt_tokens_while_decoding = static_cast<int32_t>(Draw(1, 30));
    policy.max_preemptions = static_cast<int32_t>(Draw(0, 3));
    policy.max_worker_losses = 2;
    policy.step_cost = {
        .fixed_us = 10, .us_per_prompt_token = 1, .us_per_generated_token = 1, .us_per_context_token = 0};
    return policy;
  }

  void Form() {
    const auto num_groups = static_cast<int32_t>(Draw(1, 3)), num_blocks = static_cast<int32_t>(Draw(4, 40));
    workers_.emplace(num_groups, num_blocks, limits_.max_num_seqs, limits_.block_size);
    stands_ = true;
    Apply(GroupFormed{.epoch = ++epoch_, .num_dp_groups = num_groups, .blocks_per_dp_group = num_blocks});
  }

  void Happen() {
    now_ += Draw(0, 50);
    const int64_t what = Draw(0, 99);
    if (what < 25) {
      Arrive();
    } else if (what < 28) {
      Apply(Cancel{.id = static_cast<RequestId>(Draw(1, static_cast<int64_t>(requests_.size()) + 1))});
    } else if (what < 29 && stands_) {
      stands_ = false;
      Apply(WorkerLost{.epoch = epoch_});
    } else if (what < 30) {
      Apply(Tick{});
    } else if (!stands_) {
      if (Chance(0.3)) Form();
    } else if (what < 65) {
      Plan();
    } else {
      Complete();
    }
  }

  void Arrive() {
    Request request;
    Arrival& arrival = request.arrival;
    arrival.id = requests_.size() + 1;
    arrival.tenant = static_cast<TenantId>(Draw(0, 3));
    arrival.priority = static_cast<PriorityClass>(Draw(0, 2));
    const int64_t length = Chance(0.2) ? Draw(1, 60) : Draw(1, 12);
    const auto family = static_cast<TokenId>(Draw(0, 3));  // requests of one family share their first tokens
    for (int64_t i = 0; i < length; ++i) arrival.prompt.push_back(i < 20 ? family : static_cast<TokenId>(Draw(0, 1)));
    arrival.max_tokens = static_cast<int32_t>(Draw(1, 25));
    request.tokens = arrival.prompt;
    if (arrival.max_tokens > 4 && Chance(0.1)) {
      for (int i = 0; i < 3; ++i) {
        arrival.resumed.push_back(NextToken(request.tokens));
        request.tokens.push_back(arrival.resumed.back());
      }
    }
    request.num_emitted = static_cast<int32_t>(arrival.resumed.size());
    arrival.block_keys = KeysOf(arrival.prompt, limits_.block_size);
    if (Chance(0.2)) arrival.deadline = now_ + Draw(1, 2000);
    if (Chance(0.3)) arrival.stop_tokens = {static_cast<TokenId>(Draw(0, 999)), static_cast<TokenId>(Draw(0, 999))};
    requests_[arrival.id] = request;
    arrived_[arrival.id] = now_;
    Apply(arrival);
  }

  void Plan() {
    const bool has_plan = core_.Plan(now_, plan_, outputs_);
    Look("Plan");
    if (!has_plan) return;
    for (const PlannedWork& work : plan_.work) {
      if (requests_[work.id].num_terminals > 0) error_ = "work for a request that has ended";
      if (requests_[work.id].arrival.deadline <= now_) error_ = "work after the deadline";
    }
    workers_->Start(plan_, [this](RequestId id) { return core_.tokens(id); });
    Look("Start");
  }

  void Complete() {
    if (workers_->num_in_flight() == 0) return;
    const StepCompleted completed = workers_->Finish();
    Apply(completed);
    if (Chance(0.1)) Apply(completed);
  }

  void Apply(const Event& event) {
    core_.Apply(now_, event, outputs_);
    Look("Apply " + std::to_string(event.index()));
  }

  void Look(const std::string& where) {
    if (!error_.empty()) return;
    for (const Output& output : outputs_) std::visit([this](const auto& said) { Hear(said); }, output);
    outputs_.clear();
    if (error_.empty()) error_ = core_.CheckBooks();
    if (error_.empty() && workers_) error_ = workers_->error();
    if (!error_.empty()) error_ = where + " at " + std::to_string(now_) + ": " + error_;
  }

  void Hear(const Token& token) {
    Request& request = requests_[token.id];
    if (token.index != request.num_emitted++) error_ = "token out of order";
    if (token.token != NextToken(request.tokens)) error_ = "wrong token of " + std::to_string(token.id);
    if (request.num_terminals > 0) error_ = "token after the end";
    request.tokens.push_back(token.token);
    ++num_emitted;
  }

  void Hear(const Finished& finished) {
    Request& request = requests_[finished.id];
    if (++request.num_terminals != 1) error_ = "two terminals";
    if (finished.num_output_tokens != request.num_emitted) error_ = "miscounted output";
    const WaitSplit& wait = finished.wait;
    for (const TimeUs part :
         {wait.queued_for_share_us, wait.queued_for_blocks_us, wait.queued_for_slots_us, wait.queued_for_workers_us,
          wait.prefill_us, wait.decode_us, wait.preempted_us, wait.recovering_us}) {
      if (part < 0) error_ = "negative wait";
    }
    const TimeUs sum = wait.queued_for_share_us + wait.queued_for_blocks_us + wait.queued_for_slots_us +
                       wait.queued_for_workers_us + wait.prefill_us + wait.decode_us + wait.preempted_us +
                       wait.recovering_us;
    if (sum != now_ - arrived_[finished.id]) error_ = "waits do not add up";
    if (finished.num_preemptions > policy_.max_preemptions) error_ = "preempted too often";
    num_preempted += finished.num_preemptions;
    num_cached += finished.num_cached_tokens;
  }

  void Hear(const Refused& refused) {
    if (++requests_[refused.id].num_terminals != 1) error_ = "refused and answered";
  }

  // Nothing goes wrong any more: everything ends.
  void Heal() {
    if (!stands_) Form();
    for (int i = 0; i < 20000 && error_.empty(); ++i) {
      now_ += 1;
      const int before = workers_->num_in_flight();
      Plan();
      const bool planned = workers_->num_in_flight() > before;
      if (!planned && before == 0 && core_.Sequences().empty()) return;
      if (!planned && before == 0 && error_.empty()) error_ = "stands still with work to do";
      if (!planned || Chance(0.5)) Complete();
    }
    if (error_.empty()) error_ = "does not come to an end";
  }

  std::mt19937_64 random_;
  Limits limits_;
  Policy policy_;
  Scheduler core_;
  std::optional<FakeWorkers> workers_;
  std::map<RequestId, Request> requests_;
  std::map<RequestId, TimeUs> arrived_;
  std::vector<Output> outputs_;
  StepPlan plan_;
  TimeUs now_ = 1000;
  Epoch epoch_ = 0;
  bool stands_ = false;
  std::string error_;
};

TEST(RandomEvents, BreakNoRule) {
  uint64_t num_emitted = 0, num_preempted = 0, num_cached = 0;
  const char* first = std::getenv("WEIR_SEED");
  const uint64_t begin = first != nullptr ? std::strtoull(first, nullptr, 10) : 1;
  const char* count = std::getenv("WEIR_SEEDS");
  const uint64_t end = begin + (count != nullptr ? std::strtoull(count, nullptr, 10) : first != nullptr ? 1 : 600);
  for (uint64_t seed = begin; seed < end; ++seed) {
    Storm storm(seed);
    const std::string error = storm.Run(1500);
    ASSERT_EQ(error, "") << "seed " << seed;
    num_emitted += storm.num_emitted;
    num_preempted += storm.num_preempted;
    num_cached += storm.num_cached;
  }
  std::printf("%lu tokens, %lu preemptions, %lu cached\n", num_emitted, num_preempted, num_cached);
  if (first == nullptr) {
    EXPECT_GT(num_emitted, 100000u);
    EXPECT_GT(num_preempted, 1000u);
    EXPECT_GT(num_cached, 10000u);
  }
}

}  // namespace
}  // namespace weir::scheduler
