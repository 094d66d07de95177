#include <cmath>

#include "scheduler/core/policy.h"

namespace weir::scheduler {
namespace {

bool IsAmount(double value) { return std::isfinite(value) && value >= 0; }

std::string TenantError(const Policy& policy, TenantId id) {
  const TenantPolicy& tenant = policy.tenants[id];
  const std::string name = "tenant " + std::to_string(id);
  if (!std::isfinite(tenant.weight) || tenant.weight <= 0) return name + ": weight must be greater than 0";
  if (tenant.parent < -1 || tenant.parent >= id) return name + ": parent must be -1 or an earlier tenant";
  if (tenant.max_num_waiting < 0) return name + ": max_num_waiting must not be negative";
  return "";
}

}  // namespace

std::string FindPolicyError(const Policy& policy) {
  for (TenantId id = 0; id < static_cast<TenantId>(policy.tenants.size()); ++id) {
    if (std::string error = TenantError(policy, id); !error.empty()) return error;
  }
  if (!IsAmount(policy.cost_per_prompt_token) || !IsAmount(policy.cost_per_generated_token) ||
      !IsAmount(policy.cost_per_context_token)) {
    return "costs per token must be finite and not negative";
  }
  double sum = 0;
  for (const double share : policy.min_class_share) {
    if (!IsAmount(share)) return "min_class_share must not be negative";
    sum += share;
  }
  if (sum > 1) return "min_class_share must not add up to more than 1";
  if (policy.max_prompt_tokens_while_decoding < 1) return "max_prompt_tokens_while_decoding must be at least 1";
  if (policy.max_preemptions < 0) return "max_preemptions must not be negative";
  if (policy.max_worker_losses < 1) return "max_worker_losses must be at least 1";
  const StepCost& cost = policy.step_cost;
  if (!IsAmount(cost.fixed_us) || !IsAmount(cost.us_per_prompt_token) || !IsAmount(cost.us_per_generated_token) ||
      !IsAmount(cost.us_per_context_token)) {
    return "step_cost must be finite and not negative";
  }
  return "";
}

}  // namespace weir::scheduler
