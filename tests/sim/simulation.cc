#include "tests/sim/simulation.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <queue>
#include <utility>

#include "absl/strings/str_format.h"
#include "scheduler/core/scheduler.h"
#include "tests/sim/clients.h"
#include "tests/sim/plan_rules.h"
#include "tests/sim/request.h"
#include "tests/sim/trace.h"
#include "tests/sim/workers.h"
#include "tests/sim/workload.h"
#include "tools/sim/fairness.h"
#include "tools/sim/random.h"

namespace weir::sim {
namespace {

using scheduler::Epoch;
using scheduler::kNever;
using scheduler::RequestId;
using scheduler::TimeUs;

enum class Happening : uint8_t {
  kArrival,
  kFloodTurn,
  kCancel,
  kCancelStorm,
  kStepDone,
  kWorkerDeath,
  kWorkerHang,
  kLossFound,
  kForm,
  kStaleStep,
  kStaleLoss,
  kStaleForm,
  kSlowRank,
  kSlowRankEnds,
  kPolicyChange,
  kClockJump,
  kNotFinite,
  kFailedSequence,
  kUnknownId,
  kUnplannedStep,
};

struct Planned {
  TimeUs time;
  uint64_t order;  // of two at one time, the one planned first
  Happening what;
  uint64_t subject;  // an id, an epoch, a step or an index
  uint64_t detail;
  bool operator<(const Planned& other) const {  // the queue's top is the greatest: the earliest
    return time != other.time ? time > other.time : order > other.order;
  }
};

class Simulation {
 public:
  explicit Simulation(const RunOptions& options);
  RunResult Run();

 private:
  // ---- what happens ----
  void Happen(const Planned& planned);
  static bool Recurs(Happening what);
  bool HappenToClients(const Planned& planned);  // these three: false if it is none of theirs
  bool HappenToWorkers(const Planned& planned);
  bool HappenLate(const Planned& planned);
  void HappenToAll(const Planned& planned);
  void Arrive(scheduler::TenantId tenant, bool is_of_flood);
  void FeedFloods();
  void CancelOne(RequestId id, bool by_stop_string);
  void CancelMany();
  void CancelNobody();
  void JumpTo(TimeUs time);
  void FormOldGroup();
  void CompleteStep(Epoch epoch, scheduler::StepId step);
  void RepeatLater(const scheduler::StepCompleted& result);
  void BreakGroup(bool hangs);
  void FindLoss(Epoch epoch);
  void FormGroup();
  void ChangePolicy();
  void BreakRow(Workers::Breakage breakage);
  void SendUnplannedStep();
  void Heal();
  void RunChaos();
  void RunHealed();
  void StartFaults();
  void Again(Happening what, int64_t mean_us, uint64_t subject = 0);
  void In(int64_t delay_us, Happening what, uint64_t subject = 0, uint64_t detail = 0);
  bool Next();

  // ---- the core's caller ----
  void Apply(const scheduler::Event& event);
  void ApplyWithoutEffect(const scheduler::Event& event);
  void PlanAll();
  void FindPreempted();
  void LogPlan() const;
  int64_t num_preemptions() const { return num_preemptions_ + clients_.num_preempted_and_ended(); }
  void Execute();
  void CheckInTime(const FlyingWork& work);
  void Deliver();
  void StartStep();

  // ---- checks after every call ----
  void AfterCall();
  void RecountWaiting();
  void CheckStats();
  void CheckOwned();
  void CheckService();
  void FullCheck();
  void CheckEnd();
  void Log(const std::string& line) const {
    if (options_.log) options_.log(line);
  }

  const RunOptions options_;
  World world_;
  Report report_;
  Trace trace_;
  Workload workload_;
  Workers workers_;
  Clients clients_;
  Fairness fairness_;
  PlanRules rules_;
  scheduler::Scheduler scheduler_;
  Random faults_;
  Random clients_random_;
  Random steps_;

  std::priority_queue<Planned> planned_;
  uint64_t order_ = 0;
  TimeUs leap_ = 0;  // sum of clock jumps: what the core sees is the queue's time plus this
  TimeUs now_ = 0;
  TimeUs group_free_at_ = 0;
  bool group_answers_ = true;
  bool is_healing_ = false;
  bool is_draining_ = false;
  int32_t slowness_ = 1;
  Epoch last_epoch_ = 0;
  int32_t largest_pool_ = 0;
  double cost_completed_ = 0;
  std::vector<bool> flood_is_on_;
  std::vector<scheduler::StepCompleted> stale_;
  std::vector<scheduler::Output> outputs_;
  scheduler::StepPlan plan_;
  std::vector<Request*> running_;
  std::vector<Request*> preempted_;
  RunResult result_;
  int64_t num_calls_ = 0;
  int64_t num_steps_fed_ = 0;  // steps planned when floods were fed last
  int64_t num_preemptions_ = 0;
};

Simulation::Simulation(const RunOptions& options)
    : options_(options),
      world_(DrawWorld(options.seed, options.without)),
      workload_(world_),
      workers_(
          world_.limits, world_.vocabulary, [this](RequestId id) { return clients_.Find(id); }, report_),
      clients_(world_.limits, report_),
      rules_(
          world_.limits, clients_, workers_, [this](scheduler::TenantId t) { return scheduler_.virtual_counter(t); },
          report_),
      scheduler_(world_.limits, world_.policy),
      faults_(options.seed, 5),
      clients_random_(options.seed, 6),
      steps_(options.seed, 7),
      flood_is_on_(world_.loads.size(), false) {
  fairness_.SetPolicy(world_.policy);
  clients_.set_on_end([this](Request& request) {
    if (request.is_counted_waiting) fairness_.RemoveWaiting(request.arrival.tenant, request.arrival.priority);
    request.is_counted_waiting = false;
    workers_.Forget(request);
    workload_.Remember(request);
  });
}

RunResult Simulation::Run() {
  In(faults_.Chance(0.1) ? faults_.Spread(1000, 50000) : 0, Happening::kForm);
  In(1, Happening::kArrival);
  for (const scheduler::TenantId tenant : world_.leaves) {
    if (world_.loads[static_cast<size_t>(tenant)].floods) In(1, Happening::kFloodTurn, static_cast<uint64_t>(tenant));
  }
  StartFaults();
  RunChaos();
  Heal();
  RunHealed();
  if (report_.ok()) CheckEnd();
  result_.trace_hash = trace_.hash();
  result_.num_requests = static_cast<int64_t>(clients_.num_requests());
  result_.num_tokens = clients_.num_tokens();
  result_.num_preemptions = scheduler_.stats().preemptions;
  result_.num_cached_tokens = scheduler_.stats().prefix_cache_hits;
  result_.max_gap_over_u = fairness_.max_gap_over_u();
  result_.max_class_lag_over_bound = fairness_.max_class_lag_over_bound();
  result_.violation = report_.violation();
  return result_;
}

void Simulation::StartFaults() {
  const struct {
    Fault fault;
    Happening what;
    int64_t rarity;
  } kSources[] = {
      {Fault::kCancelStorm, Happening::kCancelStorm, 4},   {Fault::kWorkerDeath, Happening::kWorkerDeath, 2},
      {Fault::kWorkerHang, Happening::kWorkerHang, 4},     {Fault::kSlowRank, Happening::kSlowRank, 4},
      {Fault::kPolicyChange, Happening::kPolicyChange, 2}, {Fault::kClockJump, Happening::kClockJump, 4},
      {Fault::kNotFinite, Happening::kNotFinite, 1},       {Fault::kFailedSequence, Happening::kFailedSequence, 1},
      {Fault::kUnknownId, Happening::kUnknownId, 1},       {Fault::kRepeatedResult, Happening::kUnplannedStep, 1},
      {Fault::kStaleResult, Happening::kStaleForm, 2},
  };
  for (const auto& source : kSources) {
    if (world_.faults.contains(source.fault)) {
      Again(source.what, world_.fault_interval_us * source.rarity, static_cast<uint64_t>(source.rarity));
    }
  }
}

void Simulation::Again(Happening what, int64_t mean_us, uint64_t subject) {
  In(faults_.Around(mean_us), what, subject);
}

void Simulation::In(int64_t delay_us, Happening what, uint64_t subject, uint64_t detail) {
  planned_.push({now_ - leap_ + delay_us, order_++, what, subject, detail});
}

// Takes the next thing that happens: what is planned, or the tick that the core asked for.  False: nothing ever will.
bool Simulation::Next() {
  const TimeUs wake = scheduler_.wake_time();
  if (planned_.empty() && wake == kNever) return false;
  if (wake != kNever && (planned_.empty() || wake < planned_.top().time + leap_)) {
    now_ = std::max(now_, wake);
    Log(trace_.Line(result_.num_events, now_, "tick"));
    Apply(scheduler::Tick{});
    if (scheduler_.wake_time() <= now_)
      report_.Broken("deadline", "a tick at the wake time leaves the wake time as it was");
    return true;
  }
  const Planned planned = planned_.top();
  planned_.pop();
  now_ = std::max(now_, planned.time + leap_);
  Happen(planned);
  return true;
}

void Simulation::RunChaos() {
  const bool drains = world_.faults.contains(Fault::kDrain);
  while (report_.ok() && result_.num_events < options_.num_events) {
    if (!Next()) return report_.Broken("liveness", "nothing will ever happen again");
    if (drains && !is_draining_ && result_.num_events > options_.num_events * 3 / 4) {
      is_draining_ = true;
      Log(trace_.Line(result_.num_events, now_, "drain"));
      Apply(scheduler::DrainStarted{});
    }
    if (result_.num_steps > num_steps_fed_) FeedFloods();
  }
}

// From here on nothing goes wrong: the group comes back with all its memory, and every request has to end.
void Simulation::Heal() {
  is_healing_ = true;
  slowness_ = 1;
  if (!report_.ok()) return;
  Log(trace_.Line(result_.num_events, now_, "---- healed ----"));
  const bool is_whole = workers_.stands() && group_answers_ && workers_.blocks_per_dp_group() == largest_pool_;
  if (is_whole) return;
  if (workers_.stands()) FindLoss(workers_.epoch());
  if (!workers_.stands()) FormGroup();
}

void Simulation::RunHealed() {
  int64_t work_left = 0;
  for (const Request* request : clients_.live()) work_left += request->max_len();
  const int64_t last_step = result_.num_steps + 4 * work_left + 100;  // a step computes a row at least, thrice at most
  while (report_.ok() && !(clients_.live().empty() && workers_.in_flight().empty())) {
    if (!Next()) return report_.Broken("liveness", "nothing will ever happen again");
    if (result_.num_steps > last_step) {
      report_.Broken("liveness",
                     absl::StrFormat("%d requests have not ended long after the faults did", clients_.live().size()));
    }
  }
}

void Simulation::Happen(const Planned& planned) {
  if (planned.what == Happening::kStepDone) return CompleteStep(planned.subject, planned.detail);
  if (is_healing_) return;  // what was to go wrong does not
  if (!HappenToClients(planned) && !HappenToWorkers(planned) && !HappenLate(planned)) HappenToAll(planned);
  const auto rarity = static_cast<int64_t>(planned.subject);
  if (Recurs(planned.what)) Again(planned.what, world_.fault_interval_us * rarity, planned.subject);
}

// What StartFaults has begun: its subject is how rare it is.
bool Simulation::Recurs(Happening what) {
  switch (what) {
    case Happening::kCancelStorm:
    case Happening::kWorkerDeath:
    case Happening::kWorkerHang:
    case Happening::kSlowRank:
    case Happening::kPolicyChange:
    case Happening::kClockJump:
    case Happening::kNotFinite:
    case Happening::kFailedSequence:
    case Happening::kUnknownId:
    case Happening::kUnplannedStep:
    case Happening::kStaleForm:
      return true;
    default:
      return false;
  }
}

bool Simulation::HappenToClients(const Planned& planned) {
  const uint64_t subject = planned.subject;
  switch (planned.what) {
    case Happening::kArrival:
      Arrive(workload_.DrawTenant(), false);
      In(clients_random_.Around(world_.arrival_interval_us), Happening::kArrival);
      return true;
    case Happening::kFloodTurn:
      flood_is_on_[subject] = !flood_is_on_[subject];
      In(clients_random_.Around(world_.loads[subject].phase_us), Happening::kFloodTurn, subject);
      return true;
    case Happening::kCancel:
      CancelOne(subject, planned.detail != 0);
      return true;
    case Happening::kCancelStorm:
      CancelMany();
      return true;
    case Happening::kUnknownId:
      CancelNobody();
      return true;
    default:
      return false;
  }
}

bool Simulation::HappenToWorkers(const Planned& planned) {
  switch (planned.what) {
    case Happening::kWorkerDeath:
    case Happening::kWorkerHang:
      BreakGroup(planned.what == Happening::kWorkerHang);
      return true;
    case Happening::kLossFound:
      if (planned.subject == workers_.epoch() && workers_.stands()) FindLoss(planned.subject);
      return true;
    case Happening::kForm:
      if (!workers_.stands()) FormGroup();
      return true;
    case Happening::kSlowRank:
      slowness_ = static_cast<int32_t>(faults_.Spread(2, 40));
      In(faults_.Spread(5000, 200000), Happening::kSlowRankEnds);
      return true;
    case Happening::kSlowRankEnds:
      slowness_ = 1;
      return true;
    case Happening::kNotFinite:
      BreakRow(Workers::Breakage::kNotFinite);
      return true;
    case Happening::kFailedSequence:
      BreakRow(Workers::Breakage::kFailed);
      return true;
    default:
      return false;
  }
}

// Messages that come too late, twice, or for nothing that was ever planned.
bool Simulation::HappenLate(const Planned& planned) {
  const uint64_t subject = planned.subject;
  switch (planned.what) {
    case Happening::kStaleStep:
      Log(trace_.Line(result_.num_events, now_, "late result", stale_[subject].epoch, stale_[subject].step));
      ApplyWithoutEffect(stale_[subject]);
      return true;
    case Happening::kStaleLoss:
      Log(trace_.Line(result_.num_events, now_, "late loss", subject, 0));
      ApplyWithoutEffect(scheduler::WorkerLost{subject});
      return true;
    case Happening::kStaleForm:
      FormOldGroup();
      return true;
    case Happening::kUnplannedStep:
      SendUnplannedStep();
      return true;
    default:
      return false;
  }
}

void Simulation::HappenToAll(const Planned& planned) {
  if (planned.what == Happening::kPolicyChange) ChangePolicy();
  if (planned.what == Happening::kClockJump) JumpTo(planned.time);
}

void Simulation::JumpTo(TimeUs time) {
  leap_ += faults_.Spread(1000, 3600000000);
  now_ = std::max(now_, time + leap_);
  Log(trace_.Line(result_.num_events, now_, "clock jump"));
  Apply(scheduler::Tick{});
}

void Simulation::FormOldGroup() {
  if (last_epoch_ == 0) return;
  const auto epoch = static_cast<Epoch>(faults_.Between(1, static_cast<int64_t>(last_epoch_)));
  Log(trace_.Line(result_.num_events, now_, "late group", epoch, 0));
  ApplyWithoutEffect(scheduler::GroupFormed{epoch, 1, 7});
}

void Simulation::Arrive(scheduler::TenantId tenant, bool is_of_flood) {
  std::unique_ptr<Request> drawn = workload_.Draw(tenant, is_of_flood, now_);
  const RequestId own_id = clients_.num_requests() + 1;
  if (drawn->arrival.id != own_id) {  // a repeated id; ids of requests that ended long ago nobody can remember
    const Request* other = clients_.Find(drawn->arrival.id);
    if (other == nullptr || !other->is_live) drawn->arrival.id = own_id;
  }
  Request& request = clients_.Add(std::move(drawn));
  request.must_be_pinned = world_.policy.max_preemptions == 0;
  Log(trace_.Line(result_.num_events, now_, request));
  clients_.BeforeArrival(request, world_.policy, workers_, is_draining_, now_);
  Apply(request.arrival);
  if (request.is_live && world_.faults.contains(Fault::kCancel) && clients_random_.Chance(0.4)) {
    In(clients_random_.Spread(1, 300000), Happening::kCancel, request.id(), clients_random_.Below(2) == 0 ? 0 : 1);
  }
}

// A flood of one class goes on however many requests of its tenant's other classes wait.
void Simulation::FeedFloods() {
  num_steps_fed_ = result_.num_steps;
  for (const scheduler::TenantId tenant : world_.leaves) {
    if (!flood_is_on_[static_cast<size_t>(tenant)] || is_draining_ || !report_.ok()) continue;
    const TenantLoad& load = world_.loads[static_cast<size_t>(tenant)];
    int32_t num_waiting = 0;
    for (const Request* request : clients_.live()) {
      const scheduler::Arrival& arrival = request->arrival;
      if (arrival.tenant == tenant && arrival.priority == load.priority && !request->is_running()) ++num_waiting;
    }
    if (num_waiting < load.depth) Arrive(tenant, true);
  }
}

void Simulation::CancelOne(RequestId id, bool by_stop_string) {
  const Request* request = clients_.Find(id);
  if (!request->is_live) return;
  scheduler::Cancel cancel{id};
  if (by_stop_string) cancel.reason = scheduler::Cancel::Reason::kStopString;
  Log(trace_.Line(result_.num_events, now_, by_stop_string ? "stop string" : "cancel", id, 0));
  clients_.BeforeCancel(cancel);
  Apply(cancel);
}

void Simulation::CancelNobody() {
  const auto num_requests = static_cast<int64_t>(clients_.num_requests());
  const auto beyond = static_cast<RequestId>(num_requests + 1 + faults_.Below(1000));
  const auto ended = static_cast<RequestId>(faults_.Below(num_requests + 1));
  const RequestId id = faults_.Chance(0.3) ? beyond : ended;
  const Request* request = clients_.Find(id);
  if (request != nullptr && request->is_live) return;
  Log(trace_.Line(result_.num_events, now_, "cancel of nobody", id, 0));
  ApplyWithoutEffect(scheduler::Cancel{id});
}

void Simulation::CancelMany() {
  std::vector<RequestId> ids;
  for (const Request* request : clients_.live()) ids.push_back(request->id());
  std::sort(ids.begin(), ids.end());
  for (const RequestId id : ids) {
    if (report_.ok() && faults_.Chance(0.7)) CancelOne(id, false);
  }
}

void Simulation::CompleteStep(Epoch epoch, scheduler::StepId step) {
  if (!workers_.stands() || epoch != workers_.epoch() || !group_answers_) return;
  FlyingStep done = workers_.Complete();
  if (done.step != step) return report_.Broken("simulator", "steps completed out of order");
  for (const FlyingWork& work : done.work) {
    cost_completed_ += world_.policy.cost_per_prompt_token * work.num_prompt_rows +
                       world_.policy.cost_per_generated_token * (work.num_tokens - work.num_prompt_rows);
  }
  clients_.BeforeStepCompleted(done);
  const scheduler::StepCompleted result{epoch, step, std::move(done.sampled)};
  Log(trace_.Line(result_.num_events, now_, "step done", epoch, step));
  if (!is_healing_ && world_.faults.contains(Fault::kRepeatedResult) && faults_.Chance(0.1)) RepeatLater(result);
  Apply(result);
}

void Simulation::RepeatLater(const scheduler::StepCompleted& result) {
  stale_.push_back(result);
  In(faults_.Chance(0.5) ? 0 : faults_.Spread(1, 50000), Happening::kStaleStep, stale_.size() - 1);
}

void Simulation::SendUnplannedStep() {
  if (!workers_.stands()) return;
  scheduler::StepCompleted result{
      workers_.epoch(), workers_.last_planned() + static_cast<uint64_t>(faults_.Spread(1, 9)), {}};
  for (auto n = faults_.Below(4); n > 0; --n) result.sampled.push_back({0, static_cast<int32_t>(n) - 1, 1});
  Log(trace_.Line(result_.num_events, now_, "result of a step not planned", result.epoch, result.step));
  ApplyWithoutEffect(result);
}

// From now on no step completes.  A death is noticed soon, a hang only by the absence of progress.
void Simulation::BreakGroup(bool hangs) {
  if (!workers_.stands() || !group_answers_) return;
  group_answers_ = false;
  const bool at_once = !hangs && faults_.Chance(0.5);
  In(at_once ? 0
     : hangs ? faults_.Spread(20000, 2000000)
             : faults_.Spread(1, 20000),
     Happening::kLossFound, workers_.epoch());
  Log(trace_.Note(now_, hangs ? "a worker hangs" : "a worker dies"));
}

void Simulation::FindLoss(Epoch epoch) {
  if (!is_healing_ && world_.faults.contains(Fault::kStaleResult)) {
    for (const FlyingStep& step : workers_.in_flight()) {
      stale_.push_back({step.epoch, step.step, step.sampled});
      In(faults_.Spread(1, 400000), Happening::kStaleStep, stale_.size() - 1);
    }
    if (faults_.Chance(0.5)) In(faults_.Spread(1, 400000), Happening::kStaleLoss, epoch);
  }
  clients_.BeforeWorkerLost(world_.policy);
  workers_.Lose();
  Log(trace_.Line(result_.num_events, now_, "worker lost", epoch, 0));
  In(faults_.Spread(1, 300000), Happening::kForm);
  Apply(scheduler::WorkerLost{epoch});
}

void Simulation::FormGroup() {
  scheduler::GroupFormed formed;
  last_epoch_ += static_cast<Epoch>(faults_.Chance(0.8) ? 1 : faults_.Between(2, 5));
  formed.epoch = last_epoch_;
  formed.num_dp_groups = world_.num_dp_groups;
  formed.blocks_per_dp_group = world_.blocks_per_dp_group;
  if (!is_healing_ && world_.faults.contains(Fault::kResize)) {
    formed.num_dp_groups = static_cast<int32_t>(faults_.Between(1, 3));
    formed.blocks_per_dp_group =
        std::max<int32_t>(2, static_cast<int32_t>(formed.blocks_per_dp_group * faults_.Between(3, 12) / 8));
  }
  if (is_healing_) formed.blocks_per_dp_group = largest_pool_;
  largest_pool_ = std::max(largest_pool_, formed.blocks_per_dp_group);
  group_answers_ = true;
  group_free_at_ = now_ - leap_;
  clients_.BeforeGroupFormed(formed);
  workers_.Form(formed.epoch, formed.num_dp_groups, formed.blocks_per_dp_group);
  fairness_.SetCapacity(
      static_cast<int64_t>(formed.num_dp_groups) * formed.blocks_per_dp_group * world_.limits.block_size,
      2 * world_.max_prompt + world_.max_output,
      static_cast<int64_t>(formed.num_dp_groups) * world_.limits.max_num_batched_tokens);
  Log(trace_.Line(result_.num_events, now_, "group formed", formed));
  Apply(formed);
}

void Simulation::ChangePolicy() {
  scheduler::Policy& policy = world_.policy;
  switch (faults_.Below(6)) {
    case 0:
    case 1:
      for (scheduler::TenantPolicy& tenant : policy.tenants)
        tenant.weight = static_cast<double>(faults_.Spread(1, 8)) / 2;
      break;
    case 2:
      policy.min_class_share = {0.0, faults_.Uniform() / 3, faults_.Uniform() / 4};
      break;
    case 3:
      policy.max_preemptions = static_cast<int32_t>(faults_.Between(0, 3));
      policy.max_worker_losses = static_cast<int32_t>(faults_.Between(1, 4));
      break;
    case 4:
      policy.max_prompt_tokens_while_decoding =
          static_cast<int32_t>(faults_.Between(1, world_.limits.max_num_batched_tokens));
      break;
    default:
      if (policy.tenants.size() >= world_.loads.size()) break;
      world_.leaves.push_back(static_cast<scheduler::TenantId>(policy.tenants.size()));
      policy.tenants.push_back({});
  }
  fairness_.SetPolicy(policy);
  Log(trace_.Line(result_.num_events, now_, "policy changed"));
  Apply(scheduler::PolicyChanged{policy});
}

void Simulation::BreakRow(Workers::Breakage breakage) {
  if (!group_answers_ || !workers_.BreakRow(breakage, faults_.Next())) return;
  Log(trace_.Note(now_, breakage == Workers::Breakage::kNotFinite ? "a row is not finite" : "a sequence fails"));
}

void Simulation::Apply(const scheduler::Event& event) {
  if (options_.progress) options_.progress(result_.num_events);
  outputs_.clear();
  trace_.Add(now_, event);
  scheduler_.Apply(now_, event, outputs_);
  ++result_.num_events;
  Deliver();
  clients_.AfterApply(now_);
  AfterCall();
  if (report_.ok()) PlanAll();
}

// For events that come too late, twice or for nobody.
void Simulation::ApplyWithoutEffect(const scheduler::Event& event) {
  const scheduler::Stats before = scheduler_.stats();
  const int64_t num_finished = clients_.num_finished();
  Apply(event);
  const scheduler::Stats& after = scheduler_.stats();
  const bool is_same = before.num_running + before.num_waiting == after.num_running + after.num_waiting &&
                       before.tokens_emitted == after.tokens_emitted && num_finished == clients_.num_finished() &&
                       before.blocks_total == after.blocks_total;
  const bool expires = scheduler_.stats().requests_finished != before.requests_finished;  // deadlines go on
  if (!is_same && !expires) report_.Broken("stale", "an event that concerns nobody changed something");
}

void Simulation::Deliver() {
  for (const scheduler::Output& output : outputs_) {
    if (options_.log) Log(trace_.Note(now_, output));
    trace_.Add(output);
    clients_.Deliver(output, world_.policy, now_);
    if (!report_.ok()) return;
  }
}

void Simulation::PlanAll() {
  while (report_.ok()) {
    outputs_.clear();
    rules_.BeforePlan(world_.policy.tenants.size());
    clients_.BeforePlan();
    const bool has_plan = scheduler_.Plan(now_, plan_, outputs_);
    Deliver();
    if (report_.ok()) clients_.AfterApply(now_);
    if (report_.ok()) FindPreempted();
    if (report_.ok() && has_plan) Execute();
    AfterCall();
    if (!has_plan) break;
  }
  if (!report_.ok()) return;
  clients_.AfterPlan(now_, scheduler_.wake_time());
  if (!plan_.work.empty() || !plan_.released.empty()) report_.Broken("plan_shape", "no plan, and something in it");
  rules_.CheckIdle();
}

void Simulation::LogPlan() const {
  Log(trace_.Note(now_, plan_));
  std::string line;
  for (const scheduler::PlannedWork& work : plan_.work) {
    const Request* request = clients_.Find(work.id);
    if (work.is_new && request != nullptr)
      absl::StrAppendFormat(&line, " r%d of tenant %d,", work.id, request->arrival.tenant);
  }
  if (line.empty()) return;
  line = "                        placed:" + line + " counters now";
  for (size_t t = 0; t < world_.policy.tenants.size(); ++t) {
    absl::StrAppendFormat(&line, " %.0f", scheduler_.virtual_counter(static_cast<scheduler::TenantId>(t)));
  }
  Log(line);
}

// A plan need not say whom it preempted until the slot is used again; the scheduler's own view tells.
void Simulation::FindPreempted() {
  preempted_.clear();
  const int64_t num_expected = scheduler_.stats().preemptions - num_preemptions();
  if (num_expected == 0) return;
  for (const scheduler::Scheduler::SequenceView& view : scheduler_.Sequences()) {
    Request* request = clients_.Find(view.id);
    if (request == nullptr || !request->is_running()) continue;
    const bool stays = view.dp_group == request->dp_group && view.slot == request->slot &&
                       view.num_planned_tokens >= request->num_planned;
    if (stays) continue;
    preempted_.push_back(request);
    if (options_.log) Log(trace_.Note(now_, absl::StrFormat("r%d is preempted", view.id).c_str()));
    workers_.Forget(*request);
  }
  rules_.CheckPreempted(preempted_);
  for (Request* request : preempted_) {
    request->must_be_pinned |= ++request->num_preemptions >= world_.policy.max_preemptions;
  }
  num_preemptions_ += std::ssize(preempted_);
  if (num_expected != std::ssize(preempted_)) {
    report_.Broken("preemption", absl::StrFormat("%d preemptions are counted, %d requests left their slots",
                                                 num_expected, preempted_.size()));
  }
}

void Simulation::Execute() {
  if (options_.log) LogPlan();
  trace_.Add(plan_);
  ++result_.num_steps;
  workers_.Execute(plan_, [this](RequestId id) { return scheduler_.tokens(id); });
  if (!report_.ok()) return;
  rules_.AfterPlan(plan_, world_.policy, preempted_);
  if (!report_.ok()) return;
  RecountWaiting();
  for (const FlyingWork& work : workers_.in_flight().back().work) {
    Request& request = *work.request;
    CheckInTime(work);
    const int32_t end = work.first_position + work.num_tokens;
    Fairness::Rows rows;
    rows.num_prompt = work.num_prompt_rows;
    rows.num_generated = work.num_tokens - work.num_prompt_rows;
    rows.num_recomputed = std::clamp(request.num_ever_planned - work.first_position, 0, work.num_tokens);
    rows.num_context = work.num_tokens * (work.first_position + (work.num_tokens - 1) / 2.0);
    request.num_ever_planned = std::max(request.num_ever_planned, end);
    fairness_.Serve(request.arrival.tenant, request.arrival.priority, rows);
  }
  fairness_.Check();
  if (!fairness_.broken_gap().empty()) report_.Broken("service_gap", fairness_.broken_gap());
  if (!fairness_.broken_class_share().empty()) report_.Broken("class_share", fairness_.broken_class_share());
  StartStep();
}

// No row is computed towards a token that cannot come before the deadline, even if this step were the last.
void Simulation::CheckInTime(const FlyingWork& work) {
  const Request& request = *work.request;
  if (request.arrival.deadline == kNever || work.num_tokens == 1) return;
  const scheduler::StepCost& cost = world_.policy.step_cost;
  const double needed = cost.fixed_us + cost.us_per_prompt_token * (request.num_known - work.first_position);
  const TimeUs left = request.arrival.deadline - now_;
  if (needed < static_cast<double>(left) + 1) return;
  report_.Broken("deadline", absl::StrFormat("request %d computes towards a token that takes %.0f us at least and has "
                                             "%d us",
                                             request.id(), needed, left));
}

// Steps run one after another; each takes what the model of its cost says, give or take half, times the slow rank.
void Simulation::StartStep() {
  const scheduler::StepCost& cost = world_.policy.step_cost;
  double context = 0;
  for (const scheduler::PlannedWork& work : plan_.work) context += work.first_position;
  const double expected = cost.fixed_us + cost.us_per_prompt_token * plan_.num_prompt_rows +
                          cost.us_per_generated_token * plan_.num_generated_rows + cost.us_per_context_token * context;
  const auto duration = static_cast<TimeUs>(expected * (0.5 + steps_.Uniform()) * slowness_);
  group_free_at_ = std::max(group_free_at_, now_ - leap_) + duration;
  planned_.push({group_free_at_, order_++, Happening::kStepDone, plan_.epoch, plan_.step});
}

void Simulation::AfterCall() {
  if (!report_.ok()) return;
  RecountWaiting();
  CheckStats();
  if (++num_calls_ % options_.full_check_every == 0) FullCheck();
}

void Simulation::RecountWaiting() {
  running_.clear();
  for (Request* request : clients_.live()) {
    const bool waits = !request->is_running();
    if (!waits) running_.push_back(request);
    if (waits == request->is_counted_waiting) continue;
    request->is_counted_waiting = waits;
    const scheduler::Arrival& arrival = request->arrival;
    if (waits) {
      fairness_.AddWaiting(arrival.tenant, arrival.priority, request->num_known);
    } else {
      fairness_.RemoveWaiting(arrival.tenant, arrival.priority);
    }
  }
}

void Simulation::CheckStats() {
  const scheduler::Stats& stats = scheduler_.stats();
  const auto check = [this](const char* checker, const char* what, int64_t said, int64_t known) {
    if (said == known) return;
    report_.Broken(checker, absl::StrFormat("%s is %d, the books say %d", what, said, known));
  };
  check("stats", "num_running", stats.num_running, std::ssize(running_));
  check("stats", "num_waiting", stats.num_waiting, std::ssize(clients_.live()) - std::ssize(running_));
  check("stats", "steps_in_flight", stats.steps_in_flight, std::ssize(workers_.in_flight()));
  check("stats", "steps_planned", stats.steps_planned, result_.num_steps);
  check("stats", "preemptions", stats.preemptions, num_preemptions());
  check("stats", "tokens_emitted", stats.tokens_emitted, clients_.num_tokens());
  check("stats", "requests_admitted", stats.requests_admitted, clients_.num_admitted());
  check("stats", "requests_finished", stats.requests_finished, clients_.num_finished());
  check("stats", "requests_refused", stats.requests_refused, clients_.num_refused());
  if (!workers_.stands()) return;
  const int64_t total = static_cast<int64_t>(workers_.num_dp_groups()) * workers_.blocks_per_dp_group();
  check("blocks", "blocks_total", stats.blocks_total, total);
  if (stats.blocks_owned != workers_.num_owned()) CheckOwned();
  check("blocks", "free + cached + owned", stats.blocks_free + stats.blocks_cached + stats.blocks_owned, total);
  if (stats.blocks_free < 0 || stats.blocks_cached < 0) report_.Broken("blocks", "a negative number of blocks");
}

// The scheduler may own more than the workers know of: a block for the next row of a sequence that no plan has named
// yet, and the blocks of a sequence that is gone, with perhaps one of those, until its last step has completed.
void Simulation::CheckOwned() {
  int64_t num_owned = workers_.num_owned();
  for (const scheduler::Scheduler::SequenceView& view : scheduler_.Sequences()) {
    const Request* request = clients_.Find(view.id);
    if (request == nullptr || !request->is_running()) continue;
    num_owned += std::ssize(view.block_table) - std::ssize(request->table);
  }
  const int64_t owned = scheduler_.stats().blocks_owned;
  if (owned >= num_owned && owned <= num_owned + workers_.num_lingering()) return;
  report_.Broken("blocks", absl::StrFormat("blocks_owned is %d, the books say %d, and %d whose last step runs", owned,
                                           num_owned, workers_.num_lingering()));
}

// Service is charged for tokens computed: for no less than what completed, for no more than what was planned.
void Simulation::CheckService() {
  if (world_.policy.cost_per_context_token != 0) return;
  double charged = 0;
  for (size_t t = 0; t < world_.policy.tenants.size(); ++t) {
    if (world_.policy.tenants[t].parent < 0) charged += scheduler_.service(static_cast<scheduler::TenantId>(t));
  }
  if (charged < cost_completed_ - 0.5 || charged > fairness_.cost_planned() + 0.5) {
    report_.Broken("service", absl::StrFormat("%.1f charged; %.1f completed, %.1f planned", charged, cost_completed_,
                                              fairness_.cost_planned()));
  }
}

void Simulation::FullCheck() {
  const std::string difference = scheduler_.CheckBooks();
  if (!difference.empty()) report_.Broken("books", difference);
  workers_.ReadAll(running_);
  CheckService();
  RequestId last = 0;
  size_t num_views = 0;
  for (const scheduler::Scheduler::SequenceView& view : scheduler_.Sequences()) {
    const Request* request = clients_.Find(view.id);
    const bool is_known = request != nullptr && request->is_live && view.id > last;
    last = view.id;
    ++num_views;
    if (!is_known)
      return report_.Broken("views", absl::StrFormat("a view of request %d, not live or out of order", view.id));
    const bool agrees = view.dp_group == request->dp_group && view.tenant == request->arrival.tenant &&
                        (view.dp_group < 0 || view.slot == request->slot) &&
                        view.num_prompt_tokens == request->num_prompt() && view.num_tokens == request->num_known;
    const bool agrees_on_work =
        !request->is_running() ||
        (view.num_computed_tokens == request->num_computed && view.num_planned_tokens == request->num_planned &&
         std::equal(view.block_table.begin(), view.block_table.end(), request->table.begin(), request->table.end()));
    if (!agrees || !agrees_on_work) {
      return report_.Broken(
          "views",
          absl::StrFormat("request %d: the scheduler says group %d slot %d, %d tokens, %d computed, %d planned, %d "
                          "blocks; the workers "
                          "%d %d, %d, %d, %d, %d",
                          view.id, view.dp_group, view.slot, view.num_tokens, view.num_computed_tokens,
                          view.num_planned_tokens, view.block_table.size(), request->dp_group, request->slot,
                          request->num_known, request->num_computed, request->num_planned, request->table.size()));
    }
  }
  if (num_views != clients_.live().size()) report_.Broken("views", "a live request is missing");
}

// Nobody is left: nothing may be held.
void Simulation::CheckEnd() {
  FullCheck();
  const scheduler::Stats& stats = scheduler_.stats();
  if (stats.blocks_owned != 0 || stats.num_waiting_tokens != 0) {
    report_.Broken("blocks", absl::StrFormat("everybody has left, and %d blocks and %d waiting tokens are held",
                                             stats.blocks_owned, stats.num_waiting_tokens));
  }
}

}  // namespace

RunResult Simulate(const RunOptions& options) { return std::make_unique<Simulation>(options)->Run(); }

}  // namespace weir::sim
