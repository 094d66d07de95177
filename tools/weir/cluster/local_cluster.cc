#include "tools/weir/cluster/local_cluster.h"

#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"

namespace weir::tools {
namespace {

constexpr int64_t kMaxDefaultCacheBytes = int64_t{4} << 30;
// The order in which the processes are asked to end: whoever takes work in first.
constexpr int kGatewayStage = 0, kSchedulerStage = 1, kRankStage = 2;

void Append(std::vector<std::string>& argv, const std::vector<std::string>& more) {
  argv.insert(argv.end(), more.begin(), more.end());
}

class Planner {
 public:
  Planner(const ClusterOptions& options, const std::string& program_directory, const std::string& run_directory)
      : options_(options), programs_(program_directory), run_(run_directory) {}

  ClusterPlan Plan() {
    ClusterPlan plan;
    for (int32_t rank = 0; rank < options_.tp * options_.dp; ++rank) plan.processes.push_back(Rank(rank));
    plan.scheduler_ops_address = absl::StrCat("127.0.0.1:", options_.ops_port + 1);
    plan.processes.push_back(Scheduler(plan.scheduler_ops_address));
    if (!options_.has_gateway) {
      plan.address = SchedulerAddress();
      return plan;
    }
    plan.address = absl::StrCat(options_.host, ":", options_.port);
    plan.gateway_ops_address = absl::StrCat("127.0.0.1:", options_.ops_port);
    plan.processes.push_back(Gateway(plan.address, plan.gateway_ops_address));
    return plan;
  }

 private:
  std::string RankAddress(int32_t rank) const { return absl::StrCat("unix:", run_, "/rank-", rank); }
  std::string SchedulerAddress() const { return absl::StrCat("unix:", run_, "/scheduler"); }

  ProcessSpec Rank(int32_t rank) const {
    ProcessSpec spec{.name = absl::StrCat("rank ", rank),
                     .ready_text = "serving at ",
                     .is_progress = [](std::string_view line) { return ParseLoadLine(line).has_value(); },
                     .drain_stage = kRankStage};
    spec.argv = {programs_ + "/weir-worker",
                 "--model",
                 options_.model,
                 absl::StrCat("--tp=", options_.tp),
                 absl::StrCat("--dp=", options_.dp),
                 absl::StrCat("--rank=", rank),
                 absl::StrCat("--backend=", options_.backend),
                 absl::StrCat("--threads=", options_.threads),
                 absl::StrCat("--dtype=", options_.dtype),
                 absl::StrCat("--num-blocks=", options_.num_blocks),
                 absl::StrCat("--max-num-seqs=", options_.max_num_seqs),
                 absl::StrCat("--max-num-batched-tokens=", options_.max_num_batched_tokens),
                 absl::StrCat("--max-model-len=", options_.max_model_len),
                 "--listen",
                 RankAddress(rank),
                 "--communicator",
                 absl::StrCat("unix:", run_, "/group-", rank)};
    if (options_.allows_overcommit) Append(spec.argv, {"--allow-overcommit"});
    if (!options_.isa.empty()) Append(spec.argv, {"--isa", options_.isa});
    Append(spec.argv, options_.worker_flags);
    return spec;
  }

  ProcessSpec Scheduler(const std::string& ops_address) const {
    ProcessSpec spec{.name = "scheduler", .ready_address = ops_address, .drain_stage = kSchedulerStage};
    spec.argv = {programs_ + "/weir-scheduler",
                 "--listen",
                 SchedulerAddress(),
                 "--ops-listen",
                 ops_address,
                 "--kill-hung-local-ranks",  // this program starts them again
                 absl::StrCat("--drain-timeout-ms=", 1000 * options_.drain_timeout_s)};
    for (int32_t rank = 0; rank < options_.tp * options_.dp; ++rank) {
      Append(spec.argv, {"--rank", RankAddress(rank)});
    }
    Append(spec.argv, options_.scheduler_flags);
    return spec;
  }

  ProcessSpec Gateway(const std::string& address, const std::string& ops_address) const {
    ProcessSpec spec{.name = "gateway", .ready_address = ops_address, .drain_stage = kGatewayStage};
    spec.argv = {programs_ + "/weir-gateway",
                 "--model",
                 absl::StrCat(options_.model_name, "=", options_.model),
                 "--scheduler",
                 SchedulerAddress(),
                 "--listen",
                 address,
                 "--ops-listen",
                 ops_address,
                 absl::StrCat("--max-model-len=", options_.max_model_len),
                 absl::StrCat("--drain-timeout-ms=", 1000 * options_.drain_timeout_s)};
    if (!options_.tls_certificate.empty()) Append(spec.argv, {"--tls-certificate", options_.tls_certificate});
    if (!options_.tls_key.empty()) Append(spec.argv, {"--tls-key", options_.tls_key});
    if (!options_.keys.empty()) Append(spec.argv, {"--keys", options_.keys});
    Append(spec.argv, options_.gateway_flags);
    return spec;
  }

  const ClusterOptions& options_;
  const std::string programs_;
  const std::string run_;
};

}  // namespace

ClusterPlan PlanCluster(const ClusterOptions& options, const std::string& program_directory,
                        const std::string& run_directory) {
  return Planner(options, program_directory, run_directory).Plan();
}

std::string LayoutText(const ClusterOptions& options, int32_t block_size) {
  const int32_t num_ranks = options.tp * options.dp;
  std::string text = absl::StrCat(num_ranks, num_ranks == 1 ? " rank" : " ranks", " (tp ", options.tp, ", dp ",
                                  options.dp, ") of ", options.threads, options.threads == 1 ? " thread" : " threads",
                                  "; room for ", options.num_blocks * block_size, " tokens");
  if (options.dp > 1) absl::StrAppend(&text, " in each of ", options.dp, " groups");
  return text;
}

std::string ChatCommand(const ClusterOptions& options, const std::string& weir) {
  const bool is_any = options.host == "0.0.0.0" || options.host == "::" || options.host == "[::]";
  const std::string address = absl::StrCat(is_any ? "127.0.0.1" : options.host, ":", options.port);
  return absl::StrCat(options.keys.empty() ? "" : "WEIR_API_KEY=... ", weir, " chat",
                      address == absl::StrCat("127.0.0.1:", kDefaultPort) ? "" : " --server " + address,
                      options.tls_certificate.empty() ? "" : " --tls");
}

absl::Status CheckPlan(const ClusterPlan& plan, const std::string& run_directory) {
  for (const ProcessSpec& process : plan.processes) {
    if (access(process.argv[0].c_str(), X_OK) == 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("the program ", process.argv[0],
                     " is missing: build it (tools/dev build) or keep the programs of one "
                     "build in one directory"));
  }
  const size_t longest = run_directory.size() + sizeof("/group-9999999");
  if (longest > sizeof(sockaddr_un::sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("the directory ", run_directory,
                                                   " makes the sockets' paths too long for the system; set "
                                                   "XDG_RUNTIME_DIR or TMPDIR to a shorter one"));
  }
  return absl::OkStatus();
}

std::optional<LoadLine> ParseLoadLine(std::string_view line) {
  const size_t begin = line.find("loading: ");  // after time, level and name, as text or as JSON
  if (begin == std::string_view::npos) return std::nullopt;
  LoadLine load;
  int end = 0;
  char unit = ' ';
  const std::string text(line.substr(begin));
  const int found = std::sscanf(text.c_str(), "loading: %d %% of %lf %cB, %lf GB/s%n", &load.percent, &load.total_gb,
                                &unit, &load.gb_per_s, &end);
  if (found != 4 || end == 0 || (unit != 'G' && unit != 'M')) return std::nullopt;
  if (unit == 'M') load.total_gb /= 1000;
  return load;
}

int64_t ChooseNumBlocks(const CacheNeeds& needs) {
  const int64_t share = std::max<int64_t>(0, needs.free_bytes) / 2 / needs.world_size;
  const int64_t affordable = std::min(share, kMaxDefaultCacheBytes) / needs.bytes_per_block;
  const int64_t useful = needs.blocks_per_seq * needs.max_num_seqs;
  return std::max<int64_t>(needs.blocks_per_seq, std::min(affordable, useful));
}

}  // namespace weir::tools
