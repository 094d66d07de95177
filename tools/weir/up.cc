// weir up: one replica and its gateway as processes of this machine.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tools/weir/cluster/held_ports.h"
#include "tools/weir/cluster/local_cluster.h"
#include "tools/weir/cluster/supervisor.h"
#include "tools/weir/commands.h"
#include "tools/weir/load_bars.h"
#include "tools/weir/program_directory.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/rank.h"

namespace weir::tools {
namespace {

namespace fs = std::filesystem;

constexpr const char* kExamples =
    "Examples:\n"
    "  weir up --model /models/DeepSeek-V2-Lite --tp 2\n"
    "  weir up --model /models/DeepSeek-V3 --tp 4 --dp 2 --keys keys.yaml --host 0.0.0.0 \\\n"
    "      --tls-certificate server.pem --tls-key server.key\n"
    "  weir up --model DIR --run-for 60        stops by itself, for scripts\n"
    "Ctrl-C drains: running requests end, new ones are refused.  A second Ctrl-C kills.";

struct UpOptions {
  ClusterOptions cluster;
  std::optional<int32_t> run_for_s;
  std::string log_directory;
  std::string gateway_config, scheduler_config, worker_config;
  bool is_verbose = false;
};

// A fresh directory for sockets, which only this user can enter; removed with what it holds.
class RunDirectory {
 public:
  RunDirectory() {
    const char* runtime = std::getenv("XDG_RUNTIME_DIR");
    std::error_code ignored;
    const bool has_runtime = runtime != nullptr && *runtime != '\0' && fs::is_directory(runtime, ignored);
    std::string pattern = (has_runtime ? fs::path(runtime) : fs::temp_directory_path(ignored)) / "weir-XXXXXX";
    if (mkdtemp(pattern.data()) != nullptr) path_ = pattern;
  }
  ~RunDirectory() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// ---- choosing what the flags leave open ----

// Whoever holds a port of ours would also answer for our processes when they are asked whether they are ready.
absl::Status CheckPorts(const ClusterOptions& options) {
  for (const auto& [port, flag] : {std::pair{options.port, "--port"},
                                   {options.ops_port, "--ops-port"},
                                   {options.ops_port + 1, "--ops-port, which takes the next one, too"}}) {
    if (CheckPortIsFree(port).ok() || (port == options.port && !options.has_gateway)) continue;
    return absl::UnavailableError(absl::StrCat("port ", port, " is in use, perhaps by another weir up: choose with ",
                                               flag, " (0 = any that is free)"));
  }
  return absl::OkStatus();
}

// What is chosen is `held` from then on.
absl::Status ChoosePorts(ClusterOptions& options, HeldPorts& held) {
  if (options.port != 0 && options.ops_port != 0) return CheckPorts(options);
  absl::StatusOr<HeldPorts> ports = HeldPorts::Take(3);
  if (!ports.ok()) return ports.status();
  held = *std::move(ports);
  if (options.port == 0) options.port = held.first();
  if (options.ops_port == 0) options.ops_port = held.first() + 1;
  return CheckPorts(options);
}

worker::RankOptions RankOptionsOf(const ClusterOptions& options) {
  worker::RankOptions rank;
  rank.layout = {options.tp, options.dp, 0};
  rank.num_blocks = 1;
  rank.max_num_seqs = options.max_num_seqs;
  rank.max_num_batched_tokens = options.max_num_batched_tokens;
  rank.max_model_len = options.max_model_len;
  if (options.dtype == "bf16") rank.weight_dtype = worker::WeightDType::kBFloat16;
  if (options.dtype == "f32") rank.weight_dtype = worker::WeightDType::kFloat32;
  return rank;
}

void ChooseCache(const worker::Checkpoint& checkpoint, ClusterOptions& options) {
  const worker::RankOptions rank = RankOptionsOf(options);
  const worker::MemoryEstimate memory = worker::EstimateMemory(checkpoint, rank);
  const int64_t length =
      options.max_model_len > 0 ? options.max_model_len : checkpoint.config().max_position_embeddings;
  const int32_t world_size = rank.layout.world_size();
  options.num_blocks = ChooseNumBlocks(
      {.bytes_per_block = memory.cache_bytes,
       .free_bytes = memory.available_bytes - world_size * (memory.weights_bytes + memory.workspace_bytes),
       .blocks_per_seq = (length + rank.block_size - 1) / rank.block_size,
       .max_num_seqs = options.max_num_seqs,
       .world_size = world_size});
}

// All ranks share this machine, and each alone would find room.
absl::Status CheckMemory(const worker::Checkpoint& checkpoint, const ClusterOptions& options) {
  worker::RankOptions rank = RankOptionsOf(options);
  rank.num_blocks = options.num_blocks;
  worker::MemoryEstimate memory = worker::EstimateMemory(checkpoint, rank);
  memory.available_bytes /= rank.layout.world_size();
  if (memory.Fits() || options.allows_overcommit) return absl::OkStatus();
  const int64_t max_num_blocks = memory.MaxNumBlocks(options.num_blocks);
  return absl::ResourceExhaustedError(absl::StrCat(
      "the model does not fit: each of ", rank.layout.world_size(), " ranks needs ", memory.ToString(), " to it; ",
      max_num_blocks > 0 ? absl::StrCat("--num-blocks ", max_num_blocks, " would fit")
                         : "free memory, bound sequences with --max-model-len, or use a machine with more",
      " (--allow-overcommit starts nevertheless)"));
}

// "deepseek-ai_DeepSeek-V3/" -> "deepseek-ai_DeepSeek-V3".
std::string NameOfDirectory(const std::string& directory) {
  std::error_code ignored;
  const fs::path path = fs::weakly_canonical(directory, ignored);
  return path.filename().string();
}

absl::Status Choose(UpOptions& options, HeldPorts& ports) {
  ClusterOptions& cluster = options.cluster;
  const auto checkpoint = worker::Checkpoint::Open(cluster.model);
  if (!checkpoint.ok()) {
    return absl::Status(checkpoint.status().code(),
                        absl::StrCat(std::string(checkpoint.status().message()),
                                     "\n  --model names a directory as published: config.json, *.safetensors and "
                                     "tokenizer.json; `weir doctor --model DIR` checks one"));
  }
  const worker::ParallelLayout layout = {cluster.tp, cluster.dp, 0};
  if (absl::Status status = CheckLayout((*checkpoint)->config(), layout); !status.ok()) return status;
  if (cluster.model_name.empty()) cluster.model_name = NameOfDirectory(cluster.model);
  if (cluster.threads == 0) {
    const auto processors = static_cast<int32_t>(std::thread::hardware_concurrency());
    cluster.threads = std::max(1, processors / layout.world_size());
  }
  if (cluster.num_blocks == 0) ChooseCache(**checkpoint, cluster);
  if (absl::Status status = CheckMemory(**checkpoint, cluster); !status.ok()) return status;
  if (!options.gateway_config.empty()) cluster.gateway_flags = {"--config", options.gateway_config};
  if (!options.scheduler_config.empty()) cluster.scheduler_flags = {"--config", options.scheduler_config};
  if (!options.worker_config.empty()) cluster.worker_flags = {"--config", options.worker_config};
  return ChoosePorts(cluster, ports);
}

// ---- showing what happens ----

class Reporter {
 public:
  Reporter(const UpOptions& options, const ClusterPlan& plan)
      : options_(options), plan_(plan), bars_(options.cluster.tp * options.cluster.dp), logs_(plan.processes.size()) {}

  absl::Status OpenLogs() {
    if (options_.log_directory.empty()) return absl::OkStatus();
    std::error_code error;
    fs::create_directories(options_.log_directory, error);
    for (size_t i = 0; i < logs_.size(); ++i) {
      std::string name = plan_.processes[i].name;
      std::replace(name.begin(), name.end(), ' ', '-');
      const std::string path = absl::StrCat(options_.log_directory, "/", name, ".log");
      logs_[i].open(path, std::ios::app);
      if (!logs_[i]) return absl::UnavailableError(absl::StrCat("--log-dir: cannot write ", path));
    }
    return absl::OkStatus();
  }

  Supervisor::Listener Listener() {
    return {
        .on_line = [this](size_t process, std::string_view line) { Line(process, std::string(line)); },
        .on_ready = [this](size_t process, std::chrono::milliseconds time) { Ready(process, time); },
        .on_all_ready = [this] { AllReady(); },
        .on_death = [this](size_t process, const std::string& how,
                           std::optional<std::chrono::milliseconds> restart_in) { Death(process, how, restart_in); },
        .on_drain = [this] { Drain(); },
        .on_kill = [this](const std::string& why) { Print("killing", why); }};
  }

  void Start() {
    const ClusterOptions& cluster = options_.cluster;
    Print("model", absl::StrCat(cluster.model_name, " from ", cluster.model));
    Print("layout", LayoutText(cluster, worker::RankOptions().block_size));
  }

  void SetLastLines(std::function<std::string(size_t)> last_lines) { last_lines_ = std::move(last_lines); }

 private:
  bool IsRank(size_t process) const {
    return process < static_cast<size_t>(options_.cluster.tp) * static_cast<size_t>(options_.cluster.dp);
  }
  void Print(const std::string& name, const std::string& text) { bars_.Print(absl::StrFormat("%-9s  %s", name, text)); }

  // By spdlog's one-letter levels, as the programs write them.  Until all are ready, processes warn of one another's
  // absence.
  bool IsTrouble(const std::string& line) const {
    constexpr size_t kLevelAt = sizeof("2026-01-01 00:00:00.000") - 1;
    const std::string level = line.size() > kLevelAt + 3 ? line.substr(kLevelAt, 3) : "";
    return level == " E " || level == " C " || (level == " W " && is_serving_);
  }

  void Line(size_t process, const std::string& line) {
    if (logs_[process].is_open()) logs_[process] << line << std::endl;
    const std::optional<LoadLine> load = ParseLoadLine(line);
    if (load && IsRank(process)) {
      bars_.Update(static_cast<int32_t>(process), *load);
    } else if (options_.is_verbose || IsTrouble(line)) {
      Print(plan_.processes[process].name, "| " + line);
    }
  }

  void Ready(size_t process, std::chrono::milliseconds time) {
    if (IsRank(process)) bars_.Done(static_cast<int32_t>(process));
    Print(plan_.processes[process].name, absl::StrFormat("ready after %.1f s", time.count() / 1000.0));
  }

  void AllReady() {
    is_serving_ = true;
    if (!options_.cluster.has_gateway) {
      Print("serving", "gateways connect at " + plan_.address);
    } else {
      Print("serving", plan_.address);
      if (options_.cluster.keys.empty())
        Print("clients", "anybody on this machine and nobody else: there are no --keys");
      Print("metrics", absl::StrCat("http://", plan_.gateway_ops_address, "/metrics of the gateway, http://",
                                    plan_.scheduler_ops_address, "/metrics of the scheduler"));
      Print("try", ChatCommand(options_.cluster, program_invocation_name));
    }
    Print("stop", "Ctrl-C");
  }

  void Drain() {
    is_serving_ = false;
    is_draining_ = true;
    Print("draining", "running requests end; Ctrl-C again kills");
  }

  void Death(size_t process, const std::string& how, std::optional<std::chrono::milliseconds> restart_in) {
    if (IsRank(process)) bars_.Done(static_cast<int32_t>(process));
    const std::string& name = plan_.processes[process].name;
    if (!restart_in && is_draining_) Print(name, how);
    if (!restart_in) return;  // it is the end, and its message tells
    Print(name, absl::StrFormat("%s; starting again in %.1f s.  Its last lines:", how, restart_in->count() / 1000.0));
    bars_.Print(last_lines_(process));
  }

  const UpOptions& options_;
  const ClusterPlan& plan_;
  LoadBars bars_;
  std::vector<std::ofstream> logs_;
  bool is_serving_ = false;
  bool is_draining_ = false;
  std::function<std::string(size_t)> last_lines_;
};

absl::Status Up(UpOptions options) {
  HeldPorts ports;  // until the children have ended
  if (absl::Status status = Choose(options, ports); !status.ok()) return status;
  const RunDirectory run;
  if (run.path().empty()) {
    return absl::UnavailableError("cannot make a directory for sockets in XDG_RUNTIME_DIR or TMPDIR");
  }
  const ClusterPlan plan = PlanCluster(options.cluster, ProgramDirectory(), run.path());
  if (absl::Status status = CheckPlan(plan, run.path()); !status.ok()) return status;
  Reporter reporter(options, plan);
  if (absl::Status status = reporter.OpenLogs(); !status.ok()) return status;
  Supervisor::Options times = {.drain_timeout = std::chrono::seconds(options.cluster.drain_timeout_s + 5)};
  if (options.run_for_s) times.run_for = std::chrono::seconds(*options.run_for_s);
  Supervisor supervisor(plan.processes, times, reporter.Listener());
  reporter.SetLastLines([&](size_t process) { return supervisor.LastLines(process); });
  reporter.Start();
  return supervisor.Run();
}

// ---- flags ----

void AddClusterOptions(CLI::App& command, ClusterOptions& o) {
  const std::string model = "Model", ranks = "Ranks", ports = "Addresses";
  command.add_option("--model", o.model, "checkpoint directory, as published on HuggingFace")->required()->group(model);
  command.add_option("--name", o.model_name, "what requests call it; default: the directory's name")->group(model);
  command.add_option("--dtype", o.dtype, "arithmetic of the weights: auto = as stored, bf16, f32")
      ->check(CLI::IsMember({"auto", "bf16", "f32"}))
      ->capture_default_str()
      ->group(model);
  command.add_option("--max-model-len", o.max_model_len, "longest sequence in tokens; 0 = the model's own")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(model);
  command.add_option("--tp", o.tp, "ranks that split attention between them")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->group(ranks);
  command.add_option("--dp", o.dp, "groups that each hold their own sequences")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->group(ranks);
  command.add_option("--threads", o.threads, "of each rank; 0 = this machine's processors, shared")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str()
      ->group(ranks);
  command.add_option("--backend", o.backend, "what computes: cpu, reference or cuda")
      ->check(CLI::IsMember({"cpu", "reference", "cuda"}))
      ->capture_default_str()
      ->group(ranks);
  command.add_option("--isa", o.isa, "force an instruction set of the cpu backend, e.g. avx2")->group(ranks);
  command.add_option("--num-blocks", o.num_blocks, "blocks of a rank's cache; 0 = by the memory that is free")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(ranks);
  command
      .add_flag("--allow-overcommit", o.allows_overcommit,
                "start although memory does not suffice by the sums; the system may then end a rank at any time")
      ->group(ranks);
  command.add_option("--max-num-seqs", o.max_num_seqs, "sequences at once, per data-parallel group")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->group(ranks);
  command.add_option("--max-num-batched-tokens", o.max_num_batched_tokens, "rows of one step, per data-parallel group")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->group(ranks);
  command.add_option("--host", o.host, "where the gateway listens; anything but loopback needs --keys")
      ->capture_default_str()
      ->group(ports);
  command.add_option("--port", o.port, "of the gateway; 0 = any free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str()
      ->group(ports);
  command
      .add_option("--ops-port", o.ops_port, "metrics of the gateway; the scheduler's is the next; 0 = any free ones")
      ->check(CLI::Range(0, 65534))
      ->capture_default_str()
      ->group(ports);
  command.add_option("--keys", o.keys, "file of API keys, made by weir keys; without it only this machine may connect")
      ->check(CLI::ExistingFile)
      ->group(ports);
  auto* certificate = command.add_option("--tls-certificate", o.tls_certificate, "PEM file: clients connect over TLS")
                          ->check(CLI::ExistingFile)
                          ->group(ports);
  command.add_option("--tls-key", o.tls_key, "PEM file of the certificate's private key")
      ->check(CLI::ExistingFile)
      ->group(ports)
      ->needs(certificate);
}

}  // namespace

void AddUp(CLI::App& app) {
  auto options = std::make_shared<UpOptions>();
  CLI::App* command = app.add_subcommand("up", "Serve a model from this machine: gateway, scheduler and ranks");
  command->footer(kExamples);
  AddClusterOptions(*command, options->cluster);
  command->add_flag_callback(
      "--no-gateway", [options] { options->cluster.has_gateway = false; }, "scheduler and ranks only");
  command->add_option("--run-for", options->run_for_s, "drain this many seconds after everything is ready")
      ->check(CLI::Range(0, 1 << 30));
  command->add_option("--drain-timeout", options->cluster.drain_timeout_s, "seconds that a drain may take")
      ->check(CLI::Range(1, 3600))
      ->capture_default_str();
  command->add_option("--log-dir", options->log_directory, "keep what each process writes in a file of this directory");
  command->add_flag("--verbose", options->is_verbose, "show every line of the processes, not only warnings and errors");
  for (auto& [flag, file] : {std::pair<const char*, std::string&>{"--gateway-config", options->gateway_config},
                             {"--scheduler-config", options->scheduler_config},
                             {"--worker-config", options->worker_config}}) {
    command->add_option(flag, file, "YAML file for that process; what this command sets wins")
        ->check(CLI::ExistingFile)
        ->group("Configuration");
  }
  command->callback([options] {
    const absl::Status status = Up(*options);
    if (status.ok()) return;
    std::fprintf(stderr, "weir up: %s\n", std::string(status.message()).c_str());
    throw CLI::RuntimeError(1);
  });
}

}  // namespace weir::tools
