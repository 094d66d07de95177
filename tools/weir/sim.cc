#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_format.h"
#include "tools/sim/policy_file.h"
#include "tools/sim/replay.h"
#include "tools/sim/request_trace.h"
#include "tools/weir/commands.h"

namespace weir::tools {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  weir sim --trace conversation.csv\n"
    "      an Azure trace, dealt to twenty cities of equal weight by a Zipf law\n"
    "  weir sim --print-policy > policy.yaml; weir sim --trace conversation.csv --policy policy.yaml --blocks 2048\n"
    "      tomorrow's weights on yesterday's trace, with a smaller cache\n"
    "  weir sim --trace conversation.csv --aggressor city03:10\n"
    "      city03 sends ten times as much; how late are the others, compared with the trace as it was?\n"
    "  weir sim --trace mooncake.jsonl --scale 0.25 --json > result.json\n"
    "      long prompts with shared prefixes, a quarter of their length\n";

struct Flags {
  std::string trace;
  std::string policy;
  double scale = 1;
  double speed = 1;
  std::string aggressor;
  int32_t blocks = 0;
  int32_t dp_groups = 0;
  uint64_t seed = 1;
  int64_t limit = 0;
  bool json = false;
  bool print_policy = false;
  sim::ReplayOptions replay;
};

[[noreturn]] void Fail(const std::string& message) {
  std::fprintf(stderr, "weir sim: %s\n", message.c_str());
  throw CLI::RuntimeError(1);
}

template <typename T>
T ValueOrFail(absl::StatusOr<T> value) {
  if (!value.ok()) Fail(std::string(value.status().message()));
  return *std::move(value);
}

sim::PolicyFile LoadPolicy(const Flags& flags) {
  sim::PolicyFile policy =
      flags.policy.empty() ? sim::DefaultPolicyFile() : ValueOrFail(sim::ReadPolicyFile(flags.policy));
  if (flags.blocks > 0) policy.blocks_per_dp_group = flags.blocks;
  if (flags.dp_groups > 0) policy.num_dp_groups = flags.dp_groups;
  return policy;
}

struct Aggressor {
  scheduler::TenantId tenant;
  int32_t factor;
};

std::optional<Aggressor> ParseAggressor(const std::string& text, const sim::PolicyFile& policy) {
  if (text.empty()) return std::nullopt;
  const size_t colon = text.rfind(':');
  const std::string name = text.substr(0, colon);
  int32_t factor = 0;
  const char* const end = text.data() + text.size();
  const bool is_factor = colon != std::string::npos &&
                         std::from_chars(text.data() + colon + 1, end, factor).ptr == end && factor >= 1 &&
                         factor <= 1000;
  if (!is_factor) Fail("--aggressor " + text + ": expected TENANT:FACTOR with a factor from 1 to 1000, like city03:10");
  const auto found = std::find(policy.tenant_names.begin(), policy.tenant_names.end(), name);
  if (found == policy.tenant_names.end()) {
    Fail("--aggressor " + text + ": the policy has no tenant '" + name + "'; its first is '" +
         policy.tenant_names.front() + "'");
  }
  return Aggressor{static_cast<scheduler::TenantId>(found - policy.tenant_names.begin()), factor};
}

// A bar on a terminal, nothing elsewhere.
std::function<void(double)> ProgressBar(const char* what) {
  if (isatty(STDERR_FILENO) == 0) return nullptr;
  return [what, shown = -1](double part_done) mutable {
    const int percent = static_cast<int>(100 * part_done);
    if (percent == shown) return;
    shown = percent;
    std::fprintf(stderr, "\r%s [%-40s] %3d%%", what, std::string(static_cast<size_t>(percent * 40 / 100), '=').c_str(),
                 percent);
    if (percent >= 100) std::fprintf(stderr, "\r%70s\r", "");
  };
}

void PrintSetup(const Flags& flags, const sim::PolicyFile& policy, const sim::RequestTrace& trace) {
  std::printf("%s", absl::StrFormat(
                        "%d requests of %s, lengths x %g, arrivals x %g, tenants by Zipf law from seed %d\n"
                        "%d dp groups x %d blocks of %d tokens; a step takes %g us + %g a prompt token + %g a "
                        "generated token + %g a context token\n\n",
                        trace.requests.size(), flags.trace, flags.scale, flags.speed, flags.seed, policy.num_dp_groups,
                        policy.blocks_per_dp_group, policy.limits.block_size, policy.policy.step_cost.fixed_us,
                        policy.policy.step_cost.us_per_prompt_token, policy.policy.step_cost.us_per_generated_token,
                        policy.policy.step_cost.us_per_context_token)
                        .c_str());
}

void Run(Flags& flags) {
  const sim::PolicyFile policy = LoadPolicy(flags);
  if (flags.print_policy) {
    std::printf("%s", sim::PrintPolicyFile(policy).c_str());
    return;
  }
  if (flags.trace.empty()) Fail("--trace is missing: name an Azure CSV or a Mooncake JSONL file");
  const std::optional<Aggressor> aggressor = ParseAggressor(flags.aggressor, policy);
  sim::RequestTrace trace = ValueOrFail(sim::ReadTrace(flags.trace, flags.limit));
  sim::AssignTenants(policy.leaves(), flags.seed, trace);
  sim::Rescale(flags.scale, flags.speed, trace);
  flags.replay.scale = flags.scale;

  std::optional<sim::ReplayResult> alone;
  if (aggressor) {
    flags.replay.progress = ProgressBar("alone   ");
    alone = sim::Replay(policy, trace, flags.replay);
    sim::Amplify(aggressor->tenant, aggressor->factor, flags.seed, trace);
  }
  if (!flags.json) PrintSetup(flags, policy, trace);
  flags.replay.progress = ProgressBar(aggressor ? "attacked" : "replay  ");
  const sim::ReplayResult result = sim::Replay(policy, trace, flags.replay);
  const sim::ReplayResult* baseline = alone ? &*alone : nullptr;
  std::printf("%s", (flags.json ? sim::ResultJson(result, baseline) : sim::ResultTable(result, baseline)).c_str());
  if (!flags.json) {
    std::printf("%s", absl::StrFormat("replayed in %.2f s: %.0f x real time\n", result.wall_s,
                                      result.makespan_s / std::max(result.wall_s, 1e-9))
                          .c_str());
  }
}

}  // namespace

void AddSim(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* sim = app.add_subcommand("sim", "Replay a recorded request trace through the scheduler under a policy");
  sim->footer(kExamples);
  sim->add_option("--trace", flags->trace, "Azure CSV or Mooncake JSONL file");
  sim->add_option("--policy", flags->policy, "YAML file; what it does not say stays at its default (--print-policy)");
  sim->add_option("--scale", flags->scale, "multiply prompt and output lengths")
      ->check(CLI::Range(1e-4, 100.0))
      ->capture_default_str();
  sim->add_option("--speed", flags->speed, "multiply the rate of arrivals")
      ->check(CLI::Range(1e-4, 1e4))
      ->capture_default_str();
  sim->add_option("--aggressor", flags->aggressor,
                  "TENANT:FACTOR sends FACTOR times as much; compared with the trace as it is");
  sim->add_option("--blocks", flags->blocks, "cache of a dp group in blocks, instead of the policy's")
      ->check(CLI::Range(1, 1 << 30));
  sim->add_option("--dp-groups", flags->dp_groups, "data-parallel groups, instead of the policy's")
      ->check(CLI::Range(1, 1024));
  sim->add_option("--seed", flags->seed, "of the tenants' draw")->capture_default_str();
  sim->add_option("--limit", flags->limit, "use the first N requests only; 0: all")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  sim->add_option("--ttft-slo-ms", flags->replay.ttft_slo_ms, "goodput counts requests whose first token is in time")
      ->capture_default_str();
  sim->add_option("--tpot-slo-ms", flags->replay.tpot_slo_ms, "... and whose time per further token is")
      ->capture_default_str();
  sim->add_option("--warmup-s", flags->replay.warmup_s, "arrivals before this are served and not measured")
      ->capture_default_str();
  sim->add_flag("--json", flags->json, "print JSON instead of a table");
  sim->add_flag("--print-policy", flags->print_policy, "print the policy in force as YAML, with every key explained");
  sim->callback([flags] { Run(*flags); });
}

}  // namespace weir::tools
