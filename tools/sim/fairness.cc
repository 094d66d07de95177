#include "tools/sim/fairness.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace weir::sim {

using scheduler::PriorityClass;
using scheduler::TenantId;

void Fairness::SetPolicy(const scheduler::Policy& policy) {
  policy_ = policy;
  nodes_.resize(policy.tenants.size());
  for (size_t t = 0; t < nodes_.size(); ++t) {
    nodes_[t].was_idle = true;
    nodes_[t].class_was_idle.fill(true);
    nodes_[t].least_weight = std::min(nodes_[t].least_weight, policy.tenants[t].weight);
  }
  pairs_.clear();
  for (size_t a = 0; a < policy.tenants.size(); ++a) {
    for (size_t b = a + 1; b < policy.tenants.size(); ++b) {
      pairs_.push_back({a, b});
    }
  }
}

void Fairness::SetCapacity(int64_t cache_tokens, int64_t request_tokens, int64_t step_tokens) {
  cache_tokens_ = std::max(cache_tokens_, cache_tokens);
  request_tokens_ = std::max(request_tokens_, request_tokens);
  step_tokens_ = std::max(step_tokens_, step_tokens);
}

void Fairness::AddWaiting(TenantId tenant, PriorityClass priority, int64_t num_tokens) {
  longest_ = std::max(longest_, num_tokens);
  ++nodes_[static_cast<size_t>(tenant)].class_waiting[static_cast<size_t>(priority)];
  ++nodes_[static_cast<size_t>(tenant)].num_waiting;
}

void Fairness::RemoveWaiting(TenantId tenant, PriorityClass priority) {
  const auto c = static_cast<size_t>(priority);
  Node& leaf = nodes_[static_cast<size_t>(tenant)];
  if (--leaf.class_waiting[c] == 0) leaf.class_was_idle[c] = true;
  if (--leaf.num_waiting == 0) leaf.was_idle = true;
}

void Fairness::Serve(TenantId tenant, PriorityClass priority, const Rows& rows) {
  const double cost = policy_.cost_per_prompt_token * rows.num_prompt +
                      policy_.cost_per_generated_token * rows.num_generated +
                      policy_.cost_per_context_token * rows.num_context;
  Node& node = nodes_[static_cast<size_t>(tenant)];
  cost_planned_ += cost;
  node.service += cost;
  node.recomputed += cost * rows.num_recomputed / std::max(1, rows.num_prompt + rows.num_generated);
  node.class_service[static_cast<size_t>(priority)] += cost;
}

double Fairness::unit() const {
  const auto longest = static_cast<double>(longest_);
  const auto cache = static_cast<double>(cache_tokens_);
  return std::max(policy_.cost_per_prompt_token * longest, policy_.cost_per_generated_token * cache) +
         policy_.cost_per_context_token * cache * static_cast<double>(request_tokens_);
}

double Fairness::MaxClassLag(size_t class_index) const {
  const double cost_per_row =
      policy_.cost_per_prompt_token + policy_.cost_per_context_token * static_cast<double>(request_tokens_);
  return kMaxClassLagInCaches * policy_.min_class_share[class_index] * unit() +
         kMaxClassLagInSteps * static_cast<double>(step_tokens_) * cost_per_row;
}

void Fairness::Check() {
  for (Pair& pair : pairs_) CheckPair(pair);
  for (size_t t = 0; t < nodes_.size(); ++t) CheckClasses(t);
  for (Node& node : nodes_) {
    node.was_idle = node.num_waiting == 0;
    for (size_t c = 0; c < node.class_waiting.size(); ++c) node.class_was_idle[c] = node.class_waiting[c] == 0;
  }
}

void Fairness::CheckPair(Pair& pair) {
  const Node& a = nodes_[pair.a];
  const Node& b = nodes_[pair.b];
  const double weight_a = policy_.tenants[pair.a].weight;
  const double weight_b = policy_.tenants[pair.b].weight;
  const double difference = a.service / weight_a - b.service / weight_b;
  const double recomputed = a.recomputed / weight_a + b.recomputed / weight_b;
  if (a.was_idle || b.was_idle) {
    pair.recomputed_before = recomputed;
    pair.is_open = a.num_waiting > 0 && b.num_waiting > 0;
    pair.low = pair.high = difference;
    return;
  }
  if (!pair.is_open) return;
  pair.low = std::min(pair.low, difference);
  pair.high = std::max(pair.high, difference);
  const double drift = pair.high - pair.low - (recomputed - pair.recomputed_before);
  const double gap = drift * std::min(a.least_weight, b.least_weight) / unit();
  max_gap_over_u_ = std::max(max_gap_over_u_, gap);
  if (gap > kMaxGapOverU && broken_gap_.empty()) {
    broken_gap_ = absl::StrFormat("tenants %d and %d both kept waiting, and their service drifted %.2f U apart", pair.a,
                                  pair.b, gap);
  }
}

void Fairness::CheckClasses(size_t tenant) {
  Node& node = nodes_[tenant];
  for (size_t c = 1; c < node.class_waiting.size(); ++c) {
    const double useful_service = node.service - node.recomputed;
    const double lag = policy_.min_class_share[c] * useful_service - node.class_service[c];
    if (node.class_was_idle[c]) {
      node.least_lag[c] = lag;
      continue;
    }
    node.least_lag[c] = std::min(node.least_lag[c], lag);
    const double lag_over_bound = (lag - node.least_lag[c]) / MaxClassLag(c);
    max_class_lag_over_bound_ = std::max(max_class_lag_over_bound_, lag_over_bound);
    if (lag_over_bound > 1 && broken_class_share_.empty()) {
      broken_class_share_ = absl::StrFormat("class %d of tenant %d kept waiting and lags %.0f behind its share of %g",
                                            c, tenant, lag - node.least_lag[c], policy_.min_class_share[c]);
    }
  }
}

}  // namespace weir::sim
