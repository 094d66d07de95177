#include "tools/sim/replay.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "scheduler/core/scheduler.h"
#include "tools/sim/fairness.h"
#include "tools/sim/random.h"

namespace weir::sim {
namespace {

using scheduler::kNever;
using scheduler::RequestId;
using scheduler::TenantId;
using scheduler::TimeUs;

constexpr scheduler::TokenId kText = 0;
constexpr scheduler::TokenId kStop = 1;
constexpr TimeUs kWindowUs = 60'000'000;

struct Life {
  const TraceRequest* asked = nullptr;
  TimeUs first_token_at = -1;
  TimeUs last_token_at = -1;
  int32_t num_output = 0;
  int32_t num_cached = 0;
  int32_t num_preemptions = 0;
  int32_t num_ever_planned = 0;
  int32_t num_prompt = 0;
  bool is_live = false;
  bool is_running = false;
  bool is_refused = false;
};

// Keys of the blocks that the prompt fills: of everything before a block's end, so that equal keys mean equal prefixes.
std::vector<scheduler::BlockKey> KeysOf(const TraceRequest& request, int32_t num_shared_ids, int32_t block_size,
                                        double scale) {
  std::vector<scheduler::BlockKey> keys;
  if (request.hash_ids.empty()) return keys;
  const int32_t num_blocks = request.num_prompt_tokens / block_size;
  keys.reserve(static_cast<size_t>(num_blocks));
  uint64_t chain = 0;
  size_t next_id = 0;
  for (int32_t block = 0; block < num_blocks; ++block) {
    const double end = (block + 1) * block_size / scale;  // in tokens of the trace
    while (next_id < request.hash_ids.size() && static_cast<double>(next_id) * kHashBlockTokens < end) {
      chain = Mix(chain, request.hash_ids[next_id++]);
    }
    const bool is_shared = static_cast<int32_t>(next_id) <= num_shared_ids;
    const uint64_t space = is_shared ? 0 : 1 + static_cast<uint64_t>(request.tenant);
    keys.push_back({Mix(chain, Mix(space, static_cast<uint64_t>(block))), chain});
  }
  return keys;
}

class Machine {
 public:
  Machine(const PolicyFile& policy, const RequestTrace& trace, const ReplayOptions& options)
      : policy_(policy), trace_(trace), options_(options), core_(policy.limits, policy.policy) {
    fairness_.SetPolicy(policy.policy);
    window_waited_.assign(policy.policy.tenants.size(), true);
    window_service_.assign(policy.policy.tenants.size(), 0);
    lives_.resize(trace.requests.size());
    int32_t longest_prompt = 0;
    for (const TraceRequest& request : trace.requests) {
      max_tokens_ = std::max(max_tokens_, request.num_output_tokens);
      longest_prompt = std::max(longest_prompt, request.num_prompt_tokens);
    }
    fairness_.SetCapacity(
        static_cast<int64_t>(policy.num_dp_groups) * policy.blocks_per_dp_group * policy.limits.block_size,
        longest_prompt + max_tokens_,
        static_cast<int64_t>(policy.num_dp_groups) * policy.limits.max_num_batched_tokens);
  }

  ReplayResult Run();

 private:
  struct Flying {
    scheduler::StepCompleted result;
    TimeUs ends_at;
  };

  Life& life(RequestId id) { return lives_[id - 1]; }
  void Arrive(size_t index);
  void Apply(const scheduler::Event& event);
  void Take(const scheduler::Output& output);
  void PlanAll();
  void Start(const scheduler::StepPlan& plan);
  void SetRunning(Life& life, bool is_running);
  void CloseWindows();
  TenantResult Measure(TenantId tenant) const;  // -1: all
  ReplayResult Result() const;

  const PolicyFile& policy_;
  const RequestTrace& trace_;
  const ReplayOptions& options_;
  scheduler::Scheduler core_;
  Fairness fairness_;
  std::vector<Life> lives_;
  std::vector<std::vector<RequestId>> slots_;  // by group
  std::deque<Flying> flying_;
  std::vector<scheduler::Output> outputs_;
  scheduler::StepPlan plan_;
  int32_t max_tokens_ = 1;
  TimeUs now_ = 0;
  TimeUs free_at_ = 0;
  int64_t num_steps_ = 0;
  int64_t num_rows_ = 0;
  TimeUs window_ends_at_ = kWindowUs;
  std::vector<bool> window_waited_;
  std::vector<double> window_service_;
  std::vector<double> jains_;
};

ReplayResult Machine::Run() {
  const auto began = std::chrono::steady_clock::now();
  slots_.assign(static_cast<size_t>(policy_.num_dp_groups),
                std::vector<RequestId>(static_cast<size_t>(policy_.limits.max_num_seqs), 0));
  Apply(scheduler::GroupFormed{1, policy_.num_dp_groups, policy_.blocks_per_dp_group});
  size_t next = 0;
  while (next < lives_.size() || !flying_.empty()) {
    const TimeUs arrives = next < lives_.size() ? trace_.requests[next].arrival_us : kNever;
    const TimeUs completes = flying_.empty() ? kNever : flying_.front().ends_at;
    now_ = std::max(now_, std::min(arrives, completes));
    CloseWindows();
    if (completes <= arrives) {
      const Flying done = std::move(flying_.front());
      flying_.pop_front();
      Apply(done.result);
    } else {
      Arrive(next++);
    }
    PlanAll();
    if (options_.progress && (num_steps_ & 0xff) == 0) {
      options_.progress(static_cast<double>(next) / static_cast<double>(lives_.size()));
    }
  }
  ReplayResult result = Result();
  result.wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  return result;
}

void Machine::Arrive(size_t index) {
  const TraceRequest& asked = trace_.requests[index];
  Life& arriving = lives_[index];
  arriving.asked = &asked;
  arriving.num_prompt = asked.num_prompt_tokens;
  scheduler::Arrival arrival;
  arrival.id = index + 1;
  arrival.tenant = asked.tenant;
  arrival.prompt.assign(static_cast<size_t>(asked.num_prompt_tokens), kText);
  arrival.block_keys = KeysOf(asked, trace_.num_shared_ids, policy_.limits.block_size, options_.scale);
  arrival.max_tokens = max_tokens_;
  arrival.stop_tokens = {kStop};
  arriving.is_live = true;
  fairness_.AddWaiting(asked.tenant, arrival.priority, asked.num_prompt_tokens);
  Apply(arrival);
}

void Machine::Apply(const scheduler::Event& event) {
  outputs_.clear();
  core_.Apply(now_, event, outputs_);
  for (const scheduler::Output& output : outputs_) Take(output);
}

void Machine::Take(const scheduler::Output& output) {
  if (const auto* token = std::get_if<scheduler::Token>(&output)) {
    Life& told = life(token->id);
    if (told.first_token_at < 0) told.first_token_at = now_;
    told.last_token_at = now_;
    ++told.num_output;
    return;
  }
  const auto* finished = std::get_if<scheduler::Finished>(&output);
  Life& ended = life(finished != nullptr ? finished->id : std::get<scheduler::Refused>(output).id);
  if (!ended.is_running) fairness_.RemoveWaiting(ended.asked->tenant, scheduler::PriorityClass::kStandard);
  ended.is_live = ended.is_running = false;
  ended.is_refused = finished == nullptr;
  if (finished == nullptr) return;
  ended.num_cached = finished->num_cached_tokens;
  ended.num_preemptions = finished->num_preemptions;
}

void Machine::PlanAll() {
  while (true) {
    outputs_.clear();
    const bool has_plan = core_.Plan(now_, plan_, outputs_);
    for (const scheduler::Output& output : outputs_) Take(output);
    if (!has_plan) return;
    Start(plan_);
  }
}

void Machine::SetRunning(Life& running, bool is_running) {
  if (!running.is_live || running.is_running == is_running) return;
  running.is_running = is_running;
  if (is_running) {
    fairness_.RemoveWaiting(running.asked->tenant, scheduler::PriorityClass::kStandard);
  } else {
    fairness_.AddWaiting(running.asked->tenant, scheduler::PriorityClass::kStandard,
                         running.num_prompt + running.num_output);
  }
}

// A step takes as long as the slowest of its groups.
void Machine::Start(const scheduler::StepPlan& plan) {
  const scheduler::StepCost& cost = policy_.policy.step_cost;
  for (const scheduler::ReleasedSlot& slot : plan.released) {
    SetRunning(life(slots_[static_cast<size_t>(slot.dp_group)][static_cast<size_t>(slot.slot)]), false);
  }
  Flying step{{plan.epoch, plan.step, {}}, 0};
  std::vector<double> micros(static_cast<size_t>(policy_.num_dp_groups), 0);
  for (const scheduler::PlannedWork& work : plan.work) {
    Life& worked = life(work.id);
    SetRunning(worked, true);
    slots_[static_cast<size_t>(work.dp_group)][static_cast<size_t>(work.slot)] = work.id;
    Fairness::Rows rows;
    rows.num_prompt = std::clamp(worked.num_prompt - work.first_position, 0, work.num_tokens);
    rows.num_generated = work.num_tokens - rows.num_prompt;
    rows.num_recomputed = std::clamp(worked.num_ever_planned - work.first_position, 0, work.num_tokens);
    rows.num_context = work.num_tokens * (work.first_position + (work.num_tokens - 1) / 2.0);
    worked.num_ever_planned = std::max(worked.num_ever_planned, work.first_position + work.num_tokens);
    fairness_.Serve(worked.asked->tenant, scheduler::PriorityClass::kStandard, rows);
    micros[static_cast<size_t>(work.dp_group)] += cost.us_per_prompt_token * rows.num_prompt +
                                                  cost.us_per_generated_token * rows.num_generated +
                                                  cost.us_per_context_token * rows.num_context;
    num_rows_ += work.num_tokens;
    if (!work.samples) continue;
    const int32_t num_sampled = work.first_position + work.num_tokens + 1 - worked.num_prompt;
    step.result.sampled.push_back(
        {work.dp_group, work.slot, num_sampled >= worked.asked->num_output_tokens ? kStop : kText});
  }
  fairness_.Check();
  const double slowest = *std::max_element(micros.begin(), micros.end());
  free_at_ = std::max(free_at_, now_) + static_cast<TimeUs>(cost.fixed_us + slowest);
  step.ends_at = free_at_;
  flying_.push_back(std::move(step));
  ++num_steps_;
  for (size_t t = 0; t < window_waited_.size(); ++t) {
    if (fairness_.num_waiting(static_cast<TenantId>(t)) == 0) window_waited_[t] = false;
  }
}

void Machine::CloseWindows() {
  while (now_ >= window_ends_at_) {
    double sum = 0;
    double squares = 0;
    int32_t num_tenants = 0;
    for (size_t t = 0; t < window_waited_.size(); ++t) {
      const double service = fairness_.service(static_cast<TenantId>(t));
      if (window_waited_[t]) {
        const double part = (service - window_service_[t]) / policy_.policy.tenants[t].weight;
        sum += part;
        squares += part * part;
        ++num_tenants;
      }
      window_service_[t] = service;
      window_waited_[t] = fairness_.num_waiting(static_cast<TenantId>(t)) > 0;
    }
    if (num_tenants >= 2 && squares > 0) jains_.push_back(sum * sum / (num_tenants * squares));
    window_ends_at_ += kWindowUs;
  }
}

Percentiles PercentilesOf(std::vector<double>& values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double part) {
    return values[static_cast<size_t>(std::ceil(part * static_cast<double>(values.size())) - 1)];
  };
  return {at(0.50), at(0.90), at(0.99)};
}

TenantResult Machine::Measure(TenantId tenant) const {
  TenantResult result;
  result.name = tenant < 0 ? "all" : policy_.tenant_names[static_cast<size_t>(tenant)];
  std::vector<double> ttft_ms;
  std::vector<double> tpot_ms;
  int64_t good_tokens = 0;
  int64_t num_prompt = 0;
  int64_t num_cached = 0;
  for (const Life& one : lives_) {
    if (one.asked == nullptr || (tenant >= 0 && one.asked->tenant != tenant)) continue;
    result.num_preemptions += one.num_preemptions;
    if (!one.is_refused) {
      num_prompt += one.num_prompt;
      num_cached += one.num_cached;
    }
    if (static_cast<double>(one.asked->arrival_us) < options_.warmup_s * 1e6) continue;
    ++result.num_requests;
    if (one.is_refused || one.first_token_at < 0) {
      ++result.num_refused;
      ttft_ms.push_back(std::numeric_limits<double>::infinity());
      continue;
    }
    ++result.num_finished;
    const double ttft = static_cast<double>(one.first_token_at - one.asked->arrival_us) / 1000;
    ttft_ms.push_back(ttft);
    double tpot = 0;
    if (one.num_output > 1) {
      tpot = static_cast<double>(one.last_token_at - one.first_token_at) / 1000 / (one.num_output - 1);
      tpot_ms.push_back(tpot);
    }
    if (ttft <= options_.ttft_slo_ms && tpot <= options_.tpot_slo_ms) good_tokens += one.num_output;
  }
  result.ttft_ms = PercentilesOf(ttft_ms);
  result.tpot_ms = PercentilesOf(tpot_ms);
  const double measured_s = std::max(static_cast<double>(now_) / 1e6 - options_.warmup_s, 1e-6);
  result.goodput_tokens_per_s = static_cast<double>(good_tokens) / measured_s;
  result.hit_rate = num_prompt == 0 ? 0 : static_cast<double>(num_cached) / static_cast<double>(num_prompt);
  return result;
}

ReplayResult Machine::Result() const {
  ReplayResult result;
  result.all = Measure(-1);
  result.all.share = 1;
  std::vector<bool> sent(policy_.policy.tenants.size(), false);
  for (const TraceRequest& request : trace_.requests) sent[static_cast<size_t>(request.tenant)] = true;
  for (size_t t = 0; t < sent.size(); ++t) {
    if (!sent[t]) continue;
    TenantResult& tenant = result.tenants.emplace_back(Measure(static_cast<TenantId>(t)));
    tenant.share = fairness_.service(static_cast<TenantId>(t)) / std::max(fairness_.cost_planned(), 1e-9);
  }
  result.trace_s = static_cast<double>(trace_.requests.back().arrival_us) / 1e6;
  result.makespan_s = static_cast<double>(now_) / 1e6;
  result.num_steps = num_steps_;
  result.tokens_per_s = static_cast<double>(num_rows_) / std::max(result.makespan_s, 1e-6);
  result.max_gap_over_u = fairness_.max_gap_over_u();
  result.num_jain_windows = static_cast<int32_t>(jains_.size());
  if (!jains_.empty()) {
    double sum = 0;
    for (const double jain : jains_) sum += jain;
    result.jain_min = *std::min_element(jains_.begin(), jains_.end());
    result.jain_mean = sum / static_cast<double>(jains_.size());
  }
  return result;
}

}  // namespace

ReplayResult Replay(const PolicyFile& policy, const RequestTrace& trace, const ReplayOptions& options) {
  return std::make_unique<Machine>(policy, trace, options)->Run();
}

}  // namespace weir::sim
