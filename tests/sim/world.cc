#include "tests/sim/world.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "tools/sim/random.h"

namespace weir::sim {
namespace {

constexpr std::array<std::string_view, kNumFaults> kFaultNames = {
    "cancel",          "cancel_storm", "deadline",        "worker_death",  "worker_hang", "stale_result",
    "repeated_result", "slow_rank",    "small_pool",      "policy_change", "clock_jump",  "not_finite",
    "failed_sequence", "unknown_id",   "invalid_arrival", "resize",        "drain"};

FaultSet DrawFaults(Random& random) {
  FaultSet faults;
  if (random.Chance(0.05)) return faults;  // fair weather must work too
  const double chance = random.Chance(0.3) ? 0.15 : 0.45;
  for (int i = 0; i < kNumFaults; ++i) {
    const auto fault = static_cast<Fault>(i);
    const bool rare = fault == Fault::kDrain || fault == Fault::kSlowRank || fault == Fault::kPolicyChange;
    if (random.Chance(rare ? chance / 2 : chance)) faults.insert(fault);
  }
  return faults;
}

void DrawSizes(Random& random, World& world) {
  scheduler::Limits& limits = world.limits;
  limits.block_size = static_cast<int32_t>(4 << random.Below(random.Chance(0.7) ? 2 : 4));
  limits.max_num_seqs = static_cast<int32_t>(random.Spread(1, 12));
  limits.max_num_batched_tokens = static_cast<int32_t>(limits.max_num_seqs + random.Spread(1, 64));
  limits.max_steps_in_flight = static_cast<int32_t>(random.Chance(0.8) ? 2 : random.Between(1, 3));
  limits.max_num_waiting = static_cast<int32_t>(random.Chance(0.3) ? random.Between(2, 8) : random.Between(12, 60));
  limits.max_waiting_tokens = random.Chance(0.8) ? 1 << 20 : random.Between(64, 512);
  world.num_dp_groups = static_cast<int32_t>(random.Chance(0.6) ? 1 : random.Between(2, 3));
  world.blocks_per_dp_group = static_cast<int32_t>(world.faults.contains(Fault::kSmallPool) ? random.Between(4, 14)
                                                   : random.Chance(0.6)                     ? random.Between(12, 48)
                                                                                            : random.Between(48, 320));
}

void DrawTenants(Random& random, World& world) {
  scheduler::Policy& policy = world.policy;
  const bool is_tree = random.Chance(0.3);
  const bool has_weights = random.Chance(0.5);
  const auto add = [&](scheduler::TenantId parent) {
    scheduler::TenantPolicy tenant;
    tenant.parent = parent;
    tenant.weight = has_weights ? static_cast<double>(random.Between(1, 4)) : 1.0;
    tenant.max_num_waiting = static_cast<int32_t>(random.Chance(0.7) ? 1000 : random.Between(2, 12));
    policy.tenants.push_back(tenant);
    return static_cast<scheduler::TenantId>(policy.tenants.size() - 1);
  };
  const auto num_roots = random.Between(1, is_tree ? 3 : 5);
  for (int i = 0; i < num_roots; ++i) {
    const scheduler::TenantId root = add(-1);
    if (!is_tree || random.Chance(0.3)) {
      world.leaves.push_back(root);
    } else {
      for (auto n = random.Between(1, 3); n > 0; --n) world.leaves.push_back(add(root));
    }
  }
}

void DrawPolicy(Random& random, World& world) {
  scheduler::Policy& policy = world.policy;
  policy.cost_per_generated_token = random.Chance(0.7) ? 2.0 : 1.0;
  policy.cost_per_context_token = random.Chance(0.9) ? 0.0 : 0.125;
  if (random.Chance(0.3)) policy.min_class_share = {0.0, 0.25, 0.125};
  policy.max_prompt_tokens_while_decoding =
      static_cast<int32_t>(random.Between(1, world.limits.max_num_batched_tokens));
  policy.max_preemptions = static_cast<int32_t>(random.Chance(0.7) ? 3 : random.Between(0, 2));
  policy.max_worker_losses = static_cast<int32_t>(random.Chance(0.7) ? 2 : random.Between(1, 4));
  policy.step_cost.fixed_us = static_cast<double>(random.Spread(250, 4000));
  policy.step_cost.us_per_prompt_token = static_cast<double>(random.Between(5, 50));
  policy.step_cost.us_per_generated_token = static_cast<double>(random.Between(10, 100));
}

void DrawLoad(Random& random, World& world) {
  world.max_prompt = static_cast<int32_t>(random.Spread(4, 96));
  world.max_output = static_cast<int32_t>(random.Between(1, 48));
  world.limits.max_model_len = random.Chance(0.8) ? 4096 : (world.max_prompt + world.max_output) * 3 / 4 + 2;
  world.vocabulary = static_cast<int32_t>(random.Between(16, 400));
  world.num_stop_tokens = static_cast<int32_t>(random.Below(3));
  world.arrival_interval_us = random.Spread(4000, 120000);
  world.prefix_chance = random.Chance(0.3) ? 0.0 : random.Uniform();
  world.shared_chance = random.Chance(0.5) ? 0.0 : random.Uniform();
  world.resume_chance = random.Chance(0.5) ? 0.0 : 0.3;
  world.uncached_chance = random.Chance(0.5) ? 0.0 : 0.2;
  world.fault_interval_us = random.Spread(10000, 1000000);
  const bool some_flood = random.Chance(0.5);
  for (size_t i = 0; i < world.policy.tenants.size() + 8; ++i) {  // some to spare for tenants that are added
    TenantLoad load;
    load.floods = some_flood && random.Chance(0.7);
    load.depth = static_cast<int32_t>(random.Between(1, 5));
    load.phase_us = random.Spread(50000, 4000000);
    load.mixes_classes = random.Chance(0.4);
    load.priority = static_cast<scheduler::PriorityClass>(random.Below(scheduler::kNumPriorityClasses));
    world.loads.push_back(load);
  }
}

}  // namespace

std::string_view Name(Fault fault) { return kFaultNames[static_cast<size_t>(fault)]; }

std::string FaultSet::ToString() const {
  std::string text;
  for (int i = 0; i < kNumFaults; ++i) {
    if (!contains(static_cast<Fault>(i))) continue;
    if (!text.empty()) text += ',';
    text += kFaultNames[static_cast<size_t>(i)];
  }
  return text.empty() ? "none" : text;
}

World DrawWorld(uint64_t seed, FaultSet without) {
  World world;
  world.seed = seed;
  Random random(seed, 1);
  world.faults = DrawFaults(random);
  world.faults.remove(without);
  DrawSizes(random, world);
  DrawTenants(random, world);
  DrawPolicy(random, world);
  DrawLoad(random, world);
  return world;
}

std::string World::Describe() const {
  std::string text = absl::StrFormat(
      "seed %d: %d dp groups x %d blocks of %d tokens, %d slots, %d tokens a step (%d of prompts beside decoding), %d "
      "steps in "
      "flight, %d waiting at most\n",
      seed, num_dp_groups, blocks_per_dp_group, limits.block_size, limits.max_num_seqs, limits.max_num_batched_tokens,
      policy.max_prompt_tokens_while_decoding, limits.max_steps_in_flight, limits.max_num_waiting);
  absl::StrAppendFormat(
      &text, "prompts to %d tokens, outputs to %d, one arrival in %d us, at most %d preemptions, %d losses\n",
      max_prompt, max_output, arrival_interval_us, policy.max_preemptions, policy.max_worker_losses);
  text += "tenants:";
  for (size_t i = 0; i < policy.tenants.size(); ++i) {
    absl::StrAppendFormat(&text, " %d(%sweight %g%s)", i,
                          policy.tenants[i].parent < 0 ? "" : absl::StrFormat("under %d, ", policy.tenants[i].parent),
                          policy.tenants[i].weight, loads[i].floods ? ", floods" : "");
  }
  return text + "\nfaults: " + faults.ToString() + "\n";
}

}  // namespace weir::sim
