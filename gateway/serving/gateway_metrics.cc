#include "gateway/serving/gateway_metrics.h"

#include <algorithm>
#include <mutex>
#include <set>

#include "gateway/serving/endings.h"
#include "metrics/series.h"

namespace weir::gateway {
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

const Buckets kFirstTokenSeconds = {.05, .1, .2, .3, .5, .75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120};
const Buckets kTokenSeconds = {.002, .004, .006, .008, .01, .015, .02, .025, .03, .04, .05,
                               .06,  .08,  .1,   .15,  .2,  .3,   .5,  1,    2,   5};
const Buckets kDurationSeconds = {.1, .2, .5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1200, 2400};
const Buckets kTokens = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};

}  // namespace

const char* Name(Api api) { return api == Api::kChat ? "chat" : "generate"; }

struct GatewayMetrics::Series {
  explicit Series(Registry& r);
  std::string TenantLabel(const std::string& tenant);

  Family<Counter>&requests, &rejected, &tokens, &replays, &to_prefix;
  Counter& slow_readers;
  Gauge &inflight, &preparing_bytes;
  Family<Gauge>&replicas, &parked;
  Histogram &first_token_seconds, &per_token_seconds, &between_tokens_seconds, &duration_seconds;
  Histogram &input_tokens, &output_tokens, &reasoning_tokens, &cached_tokens;

  std::mutex mutex;
  std::set<std::string> known_tenants;
};

GatewayMetrics::Series::Series(Registry& r)
    : requests(NewCounter(r, "weir_gateway_requests_total", "Requests, by how they ended.")),
      rejected(NewCounter(r, "weir_gateway_rejected_total", "Requests that were not begun, by why.")),
      tokens(NewCounter(r, "weir_tokens_total", "Tokens of requests that ended.")),
      replays(NewCounter(r, "weir_gateway_replays_total", "Requests taken to a replica again after a loss.")),
      to_prefix(NewCounter(r, "weir_gateway_prefix_routed_total",
                           "Requests sent to the replica that likely holds the beginning of their prompt.")),
      slow_readers(
          NewCounter(r, "weir_gateway_slow_readers_total", "Requests cancelled because their client did not read.")
              .Add({})),
      inflight(NewGauge(r, "weir_gateway_inflight_requests", "Requests that have not ended.").Add({})),
      preparing_bytes(
          NewGauge(r, "weir_gateway_preparing_bytes", "Size of requests that wait to be tokenized.").Add({})),
      replicas(NewGauge(r, "weir_gateway_replicas", "Replicas, by how they stand.")),
      parked(NewGauge(r, "weir_gateway_parked_requests", "Requests that have lost their replica and wait for one.")),
      first_token_seconds(NewHistogram(r, "weir_request_ttft_seconds", "Time from receipt to the first output token.")
                              .Add({}, kFirstTokenSeconds)),
      per_token_seconds(NewHistogram(r, "weir_request_tpot_seconds", "Time per output token after the first.")
                            .Add({}, kTokenSeconds)),
      between_tokens_seconds(NewHistogram(r, "weir_inter_token_latency_seconds", "Time between two output tokens.")
                                 .Add({}, kTokenSeconds)),
      duration_seconds(
          NewHistogram(r, "weir_request_duration_seconds", "Time from receipt to the end.").Add({}, kDurationSeconds)),
      input_tokens(NewHistogram(r, "weir_request_input_tokens", "Prompt tokens of a request.").Add({}, kTokens)),
      output_tokens(NewHistogram(r, "weir_request_output_tokens", "Output tokens of a request.").Add({}, kTokens)),
      reasoning_tokens(
          NewHistogram(r, "weir_request_reasoning_tokens", "Reasoning tokens of a request.").Add({}, kTokens)),
      cached_tokens(
          NewHistogram(r, "weir_request_cached_tokens", "Prompt tokens of a request found in the prefix cache.")
              .Add({}, kTokens)) {}

std::string GatewayMetrics::Series::TenantLabel(const std::string& tenant) {
  std::lock_guard lock(mutex);
  if (known_tenants.size() < kMaxTenantLabels) known_tenants.insert(tenant);
  return known_tenants.contains(tenant) ? tenant : "other";
}

GatewayMetrics::GatewayMetrics(std::shared_ptr<Registry> registry, const std::string& build, int64_t max_requests,
                               int64_t max_preparing_bytes)
    : series_(std::make_unique<Series>(*registry)) {
  NewGauge(*registry, "weir_gateway_max_requests", "Bound of weir_gateway_inflight_requests.")
      .Add({})
      .Set(static_cast<double>(max_requests));
  NewGauge(*registry, "weir_gateway_max_preparing_bytes", "Bound of weir_gateway_preparing_bytes.")
      .Add({})
      .Set(static_cast<double>(max_preparing_bytes));
  NewGauge(*registry, "weir_build_info", "1; the label says which build runs.").Add({{"version", build}}).Set(1);
}

GatewayMetrics::~GatewayMetrics() = default;

void GatewayMetrics::RequestRefused(const std::string& tenant, Api api, const RequestError& error) {
  const std::string label = series_->TenantLabel(tenant);
  series_->requests.Add({{"tenant", label}, {"api", Name(api)}, {"code", Name(error.code)}, {"finish_reason", "none"}})
      .Increment();
  series_->rejected.Add({{"tenant", label}, {"reason", error.reason}}).Increment();
}

void GatewayMetrics::RequestFinished(const std::string& tenant, Api api, const FinishedFrame& finished) {
  Series& series = *series_;
  const std::string label = series.TenantLabel(tenant);
  const Usage& usage = finished.usage;
  const Timing& timing = finished.timing;
  series.requests.Add({{"tenant", label}, {"api", Name(api)}, {"code", "OK"}, {"finish_reason", Name(finished.reason)}})
      .Increment();
  series.tokens.Add({{"tenant", label}, {"kind", "prompt"}}).Increment(usage.prompt_tokens - usage.cached_tokens);
  series.tokens.Add({{"tenant", label}, {"kind", "cached"}}).Increment(usage.cached_tokens);
  series.tokens.Add({{"tenant", label}, {"kind", "generated"}})
      .Increment(usage.completion_tokens - usage.reasoning_tokens);
  series.tokens.Add({{"tenant", label}, {"kind", "reasoning"}}).Increment(usage.reasoning_tokens);
  series.input_tokens.Observe(usage.prompt_tokens);
  series.output_tokens.Observe(usage.completion_tokens);
  series.reasoning_tokens.Observe(usage.reasoning_tokens);
  series.cached_tokens.Observe(usage.cached_tokens);
  series.duration_seconds.Observe(Seconds(timing.total_us));
  if (timing.time_to_first_token_us.has_value() && usage.completion_tokens > 1) {
    series.per_token_seconds.Observe(Seconds(timing.total_us - *timing.time_to_first_token_us) /
                                     (usage.completion_tokens - 1));
  }
}

void GatewayMetrics::FirstToken(int64_t after_us) { series_->first_token_seconds.Observe(Seconds(after_us)); }

// Tokens that arrive together count as having come one by one.
void GatewayMetrics::BetweenTokens(int64_t us, size_t num_tokens) {
  const double seconds = Seconds(us) / static_cast<double>(std::max<size_t>(num_tokens, 1));
  for (size_t i = 0; i < num_tokens; ++i) series_->between_tokens_seconds.Observe(seconds);
}

void GatewayMetrics::SlowReaderCutOff() { series_->slow_readers.Increment(); }

void GatewayMetrics::SetInflight(int64_t num_requests, int64_t preparing_bytes) {
  series_->inflight.Set(static_cast<double>(num_requests));
  series_->preparing_bytes.Set(static_cast<double>(preparing_bytes));
}

void GatewayMetrics::SetReplicas(const std::string& model, const ReplicaSet::View& view) {
  series_->replicas.Add({{"model", model}, {"state", "joined"}}).Set(view.num_joined);
  series_->replicas.Add({{"model", model}, {"state", "ready"}}).Set(view.num_ready);
  series_->parked.Add({{"model", model}}).Set(static_cast<double>(view.num_parked));
  Follow(series_->replays.Add({{"model", model}}), view.num_replays);
  Follow(series_->to_prefix.Add({{"model", model}}), view.num_to_prefix);
}

}  // namespace weir::gateway
