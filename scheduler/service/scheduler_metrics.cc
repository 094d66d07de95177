#include "scheduler/service/scheduler_metrics.h"

#include <map>
#include <vector>

#include "metrics/series.h"

namespace weir::scheduler {
namespace {

using metrics::Follow;
using metrics::NewCounter;
using metrics::NewGauge;
using metrics::NewHistogram;
using metrics::Seconds;
using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Registry;
using Buckets = Histogram::BucketBoundaries;

const Buckets kStepSeconds = {.0005, .001, .002, .004, .008, .015, .03, .06, .1, .2, .4, .8, 1.5, 3, 6, 12};
const Buckets kWaitSeconds = {.001, .005, .01, .05, .1, .2, .3, .5, .75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120};
const Buckets kDecodeSeconds = {.05, .1, .2, .5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1200, 2400};
const Buckets kReformSeconds = {.05, .1, .25, .5, 1, 2, 3, 4, 5, 7.5, 10, 20, 60, 300};
const Buckets kBatchTokens = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};

Gauge& Waiting(Registry& registry, const char* reason) {
  return NewGauge(registry, "weir_scheduler_waiting", "Requests in the queue, by what they wait for.")
      .Add({{"reason", reason}});
}

Gauge& Cost(Registry& registry, const char* kind) {
  return NewGauge(registry, "weir_scheduler_step_cost_seconds", "What a step is expected to take, by what for.")
      .Add({{"kind", kind}});
}

const char* NameOf(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kNotFinite:
      return "not_finite";
    case FinishReason::kFailed:
      return "failed";
    case FinishReason::kQuarantined:
      return "quarantined";
  }
  return "unknown";
}

}  // namespace

struct SchedulerMetrics::Series {
  Series(Registry& r, int32_t num_ranks, const std::string& build);

  void SetWaiting(const Stats& stats, bool group_stands);
  Counter& Tokens(const std::string& tenant, const char* kind);

  Gauge &running, &waiting, &waiting_tokens;
  Gauge &for_share, &for_blocks, &for_slots, &for_workers, &preempted, &recovering;
  Gauge &fixed_cost, &prompt_cost, &generated_cost, &context_cost;
  Histogram &step_seconds, &prompt_batch, &generated_batch;
  Counter &steps, &preemptions, &recomputed, &wasted;
  Gauge &blocks_used, &blocks_cached, &blocks_free, &kv_usage;
  Counter &cache_queries, &cache_hits, &cache_evictions;
  Counter &admitted, &quarantined;
  Family<Counter>& ended;
  Family<Counter>& refused;
  Family<Counter>& tokens;
  Histogram &queue_seconds, &prefill_seconds, &decode_seconds;
  Family<Counter>& wait_seconds;
  Gauge &epoch, &is_ready, &inbox, &gateways, &tenants;
  Counter& losses;
  Histogram& reform_seconds;
  std::vector<Gauge*> rank_up;
  std::vector<Counter*> expert_tokens;
  Histogram &worker_total, &worker_communication, &worker_sampling;
  std::map<std::string, bool> known_tenants;
};

SchedulerMetrics::Series::Series(Registry& r, int32_t num_ranks, const std::string& build)
    : running(NewGauge(r, "weir_scheduler_requests", "Live requests.").Add({{"state", "running"}})),
      waiting(NewGauge(r, "weir_scheduler_requests", "Live requests.").Add({{"state", "waiting"}})),
      waiting_tokens(NewGauge(r, "weir_scheduler_waiting_tokens", "Prompt tokens of requests in the queue.").Add({})),
      for_share(Waiting(r, "share")),
      for_blocks(Waiting(r, "blocks")),
      for_slots(Waiting(r, "slots")),
      for_workers(Waiting(r, "workers")),
      preempted(Waiting(r, "preempted")),
      recovering(Waiting(r, "recovering")),
      fixed_cost(Cost(r, "fixed")),
      prompt_cost(Cost(r, "prompt_token")),
      generated_cost(Cost(r, "generated_token")),
      context_cost(Cost(r, "context_token")),
      step_seconds(NewHistogram(r, "weir_scheduler_step_seconds", "Time between a step's start and its last result.")
                       .Add({}, kStepSeconds)),
      prompt_batch(
          NewHistogram(r, "weir_scheduler_batch_tokens", "Rows of one step.").Add({{"kind", "prompt"}}, kBatchTokens)),
      generated_batch(NewHistogram(r, "weir_scheduler_batch_tokens", "Rows of one step.")
                          .Add({{"kind", "generated"}}, kBatchTokens)),
      steps(NewCounter(r, "weir_scheduler_steps_total", "Steps planned.").Add({})),
      preemptions(NewCounter(r, "weir_preemptions_total", "Sequences set aside for others.").Add({})),
      recomputed(
          NewCounter(r, "weir_recomputed_tokens_total", "Rows computed again after a preemption or a loss.").Add({})),
      wasted(NewCounter(r, "weir_wasted_tokens_total", "Rows computed for a sequence that had ended.").Add({})),
      blocks_used(NewGauge(r, "weir_kv_blocks", "Cache blocks.").Add({{"state", "used"}})),
      blocks_cached(NewGauge(r, "weir_kv_blocks", "Cache blocks.").Add({{"state", "cached"}})),
      blocks_free(NewGauge(r, "weir_kv_blocks", "Cache blocks.").Add({{"state", "free"}})),
      kv_usage(NewGauge(r, "weir_kv_usage_ratio", "Part of the cache blocks that sequences own.").Add({})),
      cache_queries(
          NewCounter(r, "weir_prefix_cache_query_tokens_total", "Prompt tokens looked up in the prefix cache.")
              .Add({})),
      cache_hits(
          NewCounter(r, "weir_prefix_cache_hit_tokens_total", "Prompt tokens found in the prefix cache.").Add({})),
      cache_evictions(NewCounter(r, "weir_kv_evicted_blocks_total", "Cached blocks taken for others.").Add({})),
      admitted(NewCounter(r, "weir_scheduler_admitted_requests_total", "Requests that joined the queue.").Add({})),
      quarantined(
          NewCounter(r, "weir_quarantined_requests_total", "Requests in flight at too many worker losses.").Add({})),
      ended(NewCounter(r, "weir_scheduler_ended_requests_total", "Requests that ended, by how.")),
      refused(NewCounter(r, "weir_scheduler_refused_requests_total", "Requests that were not admitted, by why.")),
      tokens(NewCounter(r, "weir_scheduler_tokens_total", "Tokens of requests that ended.")),
      queue_seconds(NewHistogram(r, "weir_request_queue_seconds", "Time a request waited before its first row.")
                        .Add({}, kWaitSeconds)),
      prefill_seconds(
          NewHistogram(r, "weir_request_prefill_seconds", "Time a request's prompt took.").Add({}, kWaitSeconds)),
      decode_seconds(
          NewHistogram(r, "weir_request_decode_seconds", "Time a request's output took.").Add({}, kDecodeSeconds)),
      wait_seconds(NewCounter(r, "weir_request_wait_seconds_total", "Time requests waited, by what for.")),
      epoch(NewGauge(r, "weir_worker_group_epoch", "Number of the worker group's present life.").Add({})),
      is_ready(NewGauge(r, "weir_scheduler_ready", "1 when a group stands and has produced a token.").Add({})),
      inbox(NewGauge(r, "weir_scheduler_inbox_messages", "Messages that the event loop found waiting.").Add({})),
      gateways(NewGauge(r, "weir_scheduler_gateways", "Connected gateways.").Add({})),
      tenants(NewGauge(r, "weir_scheduler_tenants", "Tenants that have been seen.").Add({})),
      losses(NewCounter(r, "weir_worker_group_losses_total", "Times the worker group was lost.").Add({})),
      reform_seconds(NewHistogram(r, "weir_group_reform_seconds", "Time between a loss and the next group.")
                         .Add({}, kReformSeconds)),
      worker_total(NewHistogram(r, "weir_worker_step_seconds", "Time of one step on one rank.")
                       .Add({{"phase", "total"}}, kStepSeconds)),
      worker_communication(NewHistogram(r, "weir_worker_step_seconds", "Time of one step on one rank.")
                               .Add({{"phase", "communication"}}, kStepSeconds)),
      worker_sampling(NewHistogram(r, "weir_worker_step_seconds", "Time of one step on one rank.")
                          .Add({{"phase", "sampling"}}, kStepSeconds)) {
  Family<Gauge>& up = NewGauge(r, "weir_worker_up", "1 while the rank is connected and has its weights.");
  Family<Counter>& experts =
      NewCounter(r, "weir_moe_expert_tokens_total", "Rows computed by the experts that a rank holds.");
  for (int32_t rank = 0; rank < num_ranks; ++rank) {
    rank_up.push_back(&up.Add({{"rank", std::to_string(rank)}}));
    expert_tokens.push_back(&experts.Add({{"rank", std::to_string(rank)}}));
  }
  NewGauge(r, "weir_build_info", "1; the label says which build runs.").Add({{"version", build}}).Set(1);
}

SchedulerMetrics::SchedulerMetrics(std::shared_ptr<Registry> registry, int32_t num_ranks, const std::string& build)
    : series_(std::make_unique<Series>(*registry, num_ranks, build)) {}
SchedulerMetrics::~SchedulerMetrics() = default;

void SchedulerMetrics::SetStepCost(const StepCost& cost) {
  series_->fixed_cost.Set(cost.fixed_us / 1e6);
  series_->prompt_cost.Set(cost.us_per_prompt_token / 1e6);
  series_->generated_cost.Set(cost.us_per_generated_token / 1e6);
  series_->context_cost.Set(cost.us_per_context_token / 1e6);
}

void SchedulerMetrics::StepPlanned(const StepPlan& plan) {
  if (plan.num_prompt_rows > 0) series_->prompt_batch.Observe(plan.num_prompt_rows);
  if (plan.num_generated_rows > 0) series_->generated_batch.Observe(plan.num_generated_rows);
}

void SchedulerMetrics::StepCompleted(const CompletedStep& step) {
  series_->step_seconds.Observe(Seconds(step.took_us));
  for (size_t rank = 0; rank < step.ranks.size(); ++rank) {
    const RankShare& share = step.ranks[rank];
    series_->worker_total.Observe(Seconds(share.total_us));
    series_->worker_communication.Observe(Seconds(share.communication_us));
    series_->worker_sampling.Observe(Seconds(share.sampling_us));
    series_->expert_tokens[rank]->Increment(static_cast<double>(share.num_expert_rows));
  }
}

void SchedulerMetrics::RequestEnded(const Finished& finished, const std::string& tenant) {
  Series& series = *series_;
  const WaitSplit& wait = finished.wait;
  series.ended.Add({{"reason", NameOf(finished.reason)}}).Increment();
  series.Tokens(tenant, "prompt").Increment(finished.num_prompt_tokens - finished.num_cached_tokens);
  series.Tokens(tenant, "cached").Increment(finished.num_cached_tokens);
  series.Tokens(tenant, "generated").Increment(finished.num_output_tokens);
  series.queue_seconds.Observe(Seconds(wait.queued_for_share_us + wait.queued_for_blocks_us + wait.queued_for_slots_us +
                                       wait.queued_for_workers_us));
  series.prefill_seconds.Observe(Seconds(wait.prefill_us));
  series.decode_seconds.Observe(Seconds(wait.decode_us));
  series.wait_seconds.Add({{"reason", "share"}}).Increment(Seconds(wait.queued_for_share_us));
  series.wait_seconds.Add({{"reason", "blocks"}}).Increment(Seconds(wait.queued_for_blocks_us));
  series.wait_seconds.Add({{"reason", "slots"}}).Increment(Seconds(wait.queued_for_slots_us));
  series.wait_seconds.Add({{"reason", "workers"}}).Increment(Seconds(wait.queued_for_workers_us));
  series.wait_seconds.Add({{"reason", "preempted"}}).Increment(Seconds(wait.preempted_us));
  series.wait_seconds.Add({{"reason", "recovering"}}).Increment(Seconds(wait.recovering_us));
}

Counter& SchedulerMetrics::Series::Tokens(const std::string& tenant, const char* kind) {
  const bool is_named = known_tenants.contains(tenant) || known_tenants.size() < kMaxTenantLabels;
  if (is_named) known_tenants.emplace(tenant, true);
  return tokens.Add({{"tenant", is_named ? tenant : "other"}, {"kind", kind}});
}

void SchedulerMetrics::RequestRefused(const std::string& reason) {
  series_->refused.Add({{"reason", reason}}).Increment();
}

void SchedulerMetrics::GroupFormed(uint64_t epoch, TimeUs took_us) {
  series_->epoch.Set(static_cast<double>(epoch));
  if (took_us > 0) series_->reform_seconds.Observe(Seconds(took_us));
}

void SchedulerMetrics::GroupLost() { series_->losses.Increment(); }

void SchedulerMetrics::SetRankUp(int32_t rank, bool is_up) { series_->rank_up[rank]->Set(is_up ? 1 : 0); }

// Whoever has not run yet waits for workers while there are none, whatever it waited for before.
void SchedulerMetrics::Series::SetWaiting(const Stats& stats, bool group_stands) {
  const int32_t num_new = stats.num_waiting - stats.num_preempted - stats.num_recovering;
  for_share.Set(group_stands ? num_new - stats.num_waiting_for_blocks - stats.num_waiting_for_slots : 0);
  for_blocks.Set(group_stands ? stats.num_waiting_for_blocks : 0);
  for_slots.Set(group_stands ? stats.num_waiting_for_slots : 0);
  for_workers.Set(group_stands ? 0 : num_new);
  preempted.Set(stats.num_preempted);
  recovering.Set(stats.num_recovering);
}

void SchedulerMetrics::SetStats(const Stats& stats, bool group_stands) {
  Series& series = *series_;
  series.running.Set(stats.num_running);
  series.waiting.Set(stats.num_waiting);
  series.SetWaiting(stats, group_stands);
  series.waiting_tokens.Set(static_cast<double>(stats.num_waiting_tokens));
  Follow(series.steps, stats.steps_planned);
  Follow(series.preemptions, stats.preemptions);
  Follow(series.recomputed, stats.recomputed_tokens);
  Follow(series.wasted, stats.wasted_rows);
  series.blocks_used.Set(static_cast<double>(stats.blocks_owned));
  series.blocks_cached.Set(static_cast<double>(stats.blocks_cached));
  series.blocks_free.Set(static_cast<double>(stats.blocks_free));
  series.kv_usage.Set(
      stats.blocks_total > 0 ? static_cast<double>(stats.blocks_owned) / static_cast<double>(stats.blocks_total) : 0);
  Follow(series.cache_queries, stats.prefix_cache_queries);
  Follow(series.cache_hits, stats.prefix_cache_hits);
  Follow(series.cache_evictions, stats.prefix_cache_evictions);
  Follow(series.admitted, stats.requests_admitted);
  Follow(series.quarantined, stats.requests_quarantined);
}

void SchedulerMetrics::SetQueues(size_t inbox_messages, size_t num_gateways, size_t num_tenants) {
  series_->inbox.Set(static_cast<double>(inbox_messages));
  series_->gateways.Set(static_cast<double>(num_gateways));
  series_->tenants.Set(static_cast<double>(num_tenants));
}

void SchedulerMetrics::SetReady(bool is_ready) { series_->is_ready.Set(is_ready ? 1 : 0); }

}  // namespace weir::scheduler
