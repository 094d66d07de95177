// weir doctor: can this machine serve this model, and if not, what to do.

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "config/build_id.h"
#include "gateway/identity/key_ring.h"
#include "tools/weir/client/inference_client.h"
#include "tools/weir/cluster/held_ports.h"
#include "tools/weir/cluster/local_cluster.h"
#include "tools/weir/cluster/ops_probe.h"
#include "tools/weir/commands.h"
#include "tools/weir/program_directory.h"
#include "tools/weir/terminal.h"
#include "worker/backend_choice.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/rank.h"

namespace weir::tools {
namespace {

namespace fs = std::filesystem;

constexpr const char* kExamples =
    "Examples:\n"
    "  weir doctor\n"
    "  weir doctor --model /models/DeepSeek-V3 --tp 4 --dp 2 --keys keys.yaml\n"
    "  weir doctor --server gateway.example:7000 --tls\n"
    "Exit code 1 when something fails; a warning is not a failure.";

struct DoctorOptions {
  std::string model;
  int32_t tp = 1, dp = 1;
  int32_t port = kDefaultPort, ops_port = kDefaultOpsPort;
  std::string keys;
  bool asks_server = false;
  ServerOptions server;
  bool prints_json = false;
};

enum class Verdict { kOk, kWarning, kFailure };

struct Finding {
  std::string subject;
  Verdict verdict = Verdict::kOk;
  std::string text;    // what was found
  std::string advice;  // what to do; empty when it is well
};

Finding Ok(const std::string& subject, const std::string& text) { return {subject, Verdict::kOk, text, ""}; }
Finding Warning(const std::string& subject, const std::string& text, const std::string& advice) {
  return {subject, Verdict::kWarning, text, advice};
}
Finding Failure(const std::string& subject, const std::string& text, const std::string& advice) {
  return {subject, Verdict::kFailure, text, advice};
}

std::string Gigabytes(int64_t bytes) { return absl::StrFormat("%.2f GB", static_cast<double>(bytes) / 1e9); }

// ---- the machine ----

// What `program --version` writes; empty when it cannot be run.
std::string VersionOf(const std::string& path) {
  absl::StatusOr<ChildProcess> child = ChildProcess::Start({path, "--version"});
  if (!child.ok()) return "";
  std::string version;
  for (int i = 0; i < 200 && child->output_fd() >= 0; ++i) {
    child->ReadLines([&](std::string_view line) { version = std::string(line); });
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return version;
}

Finding CheckPrograms() {
  const std::string subject = "programs", directory = ProgramDirectory(), build(config::BuildId());
  for (const char* name : {"weir-worker", "weir-scheduler", "weir-gateway"}) {
    const std::string path = absl::StrCat(directory, "/", name);
    const std::string version = VersionOf(path);
    if (version.empty()) {
      return Failure(subject, path + " is missing or cannot be run",
                     "keep the programs of one build in one directory; tools/dev build makes them");
    }
    if (version != build) {
      return Failure(subject, absl::StrCat(name, " is of build ", version, ", this program of ", build),
                     "take all programs from one build: ranks and scheduler of different builds refuse each other");
    }
  }
  return Ok(subject, absl::StrCat("worker, scheduler and gateway of build ", build, " in ", directory));
}

Finding CheckProcessor() {
  const auto backend = worker::NewBackend({});
  if (!backend.ok()) return Failure("processor", std::string(backend.status().message()), "use another machine");
  const std::string detail((*backend)->detail());
  if (detail.find("portable") != std::string::npos) {
    return Warning("processor", detail, "without AVX2 it computes slowly; use a processor that has it");
  }
  return Ok("processor", detail);
}

Finding CheckCores(int32_t world_size) {
  const auto cores = static_cast<int32_t>(std::thread::hardware_concurrency());
  const std::string text = absl::StrFormat("%d for %d rank%s", cores, world_size, world_size == 1 ? "" : "s");
  if (cores >= world_size) return Ok("cores", text);
  return Warning("cores", text, "ranks that share a core wait for one another; use fewer ranks (--tp, --dp)");
}

Finding CheckOpenFiles() {
  constexpr rlim_t kEnough = 4096;
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  const std::string text = absl::StrCat(limit.rlim_cur, " files may be open");
  if (limit.rlim_cur >= kEnough) return Ok("open files", text);
  return Warning("open files", text, absl::StrCat("a busy gateway needs more: ulimit -n ", kEnough));
}

Finding CheckRunDirectory() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  std::error_code error;
  const bool has_runtime = runtime != nullptr && *runtime != '\0' && fs::is_directory(runtime, error);
  const std::string directory = has_runtime ? runtime : fs::temp_directory_path(error).string();
  if (access(directory.c_str(), W_OK | X_OK) != 0) {
    return Failure("sockets", absl::StrCat(directory, ": ", std::strerror(errno)),
                   "set XDG_RUNTIME_DIR to a directory that you may write");
  }
  return Ok("sockets", "go into " + directory);
}

Finding CheckPort(const std::string& subject, int32_t port, const std::string& flag) {
  const absl::Status status = CheckPortIsFree(port);
  if (status.ok()) return Ok(subject, absl::StrCat(port, " is free"));
  return Warning(subject, absl::StrCat(port, ": ", std::string(status.message())),
                 absl::StrCat("a cluster may be running already; else name another port with ", flag));
}

// ---- the model ----

worker::RankOptions RankOptionsOf(const DoctorOptions& options) {
  worker::RankOptions rank;
  rank.layout = {options.tp, options.dp, 0};
  rank.num_blocks = 1;
  return rank;
}

Finding CheckMemory(const worker::Checkpoint& checkpoint, const DoctorOptions& options) {
  const worker::RankOptions rank = RankOptionsOf(options);
  const worker::MemoryEstimate memory = worker::EstimateMemory(checkpoint, rank);
  const int64_t blocks_per_seq = (checkpoint.config().max_position_embeddings + rank.block_size - 1) / rank.block_size;
  const int64_t per_rank = memory.weights_bytes + memory.workspace_bytes;
  const int64_t ranks_bytes = per_rank * rank.layout.world_size();
  const int64_t cache_bytes = memory.cache_bytes * blocks_per_seq * options.dp * options.tp;
  const std::string text =
      absl::StrFormat("%s for %d ranks, %s for one sequence of full length; %s are free", Gigabytes(ranks_bytes),
                      rank.layout.world_size(), Gigabytes(cache_bytes), Gigabytes(memory.available_bytes));
  if (ranks_bytes > memory.available_bytes) {
    return Failure("memory", text, "the model does not fit: free memory, or use a machine with more");
  }
  if (ranks_bytes + cache_bytes > memory.available_bytes) {
    return Warning("memory", text, "long sequences do not fit: bound them with --max-model-len");
  }
  return Ok("memory", text);
}

void CheckModel(const DoctorOptions& options, std::vector<Finding>& findings) {
  const auto checkpoint = worker::Checkpoint::Open(options.model);
  if (!checkpoint.ok()) {
    findings.push_back(Failure("model", std::string(checkpoint.status().message()),
                               "name a complete HuggingFace directory: config.json and *.safetensors"));
    return;
  }
  findings.push_back(Ok("model", absl::StrFormat("%s, %d tensors in %d %s", (*checkpoint)->config().architecture,
                                                 (*checkpoint)->num_tensors(), (*checkpoint)->files().size(),
                                                 (*checkpoint)->files().size() == 1 ? "file" : "files")));
  const std::string tokenizer = options.model + "/tokenizer.json";
  findings.push_back(access(tokenizer.c_str(), R_OK) == 0
                         ? Ok("tokenizer", tokenizer)
                         : Failure("tokenizer", absl::StrCat(tokenizer, ": ", std::strerror(errno)),
                                   "the gateway needs the model's tokenizer.json beside its weights"));
  const absl::Status layout = CheckLayout((*checkpoint)->config(), {options.tp, options.dp, 0});
  if (!layout.ok()) {
    findings.push_back(Failure("layout", std::string(layout.message()), "choose other --tp and --dp"));
    return;
  }
  findings.push_back(Ok("layout", absl::StrFormat("tp %d x dp %d", options.tp, options.dp)));
  findings.push_back(CheckMemory(**checkpoint, options));
}

// ---- keys and gateways ----

Finding CheckKeys(const std::string& path) {
  const auto file = gateway::KeyFile::Open(path);
  if (!file.ok()) return Failure("keys", std::string(file.status().message()), "weir keys create makes a keys file");
  struct stat status = {};
  stat(path.c_str(), &status);
  const std::string text = absl::StrFormat("%d in %s, mode %03o", (*file)->ring()->size(), path, status.st_mode & 0777);
  if ((status.st_mode & 077) != 0) {
    return Warning("keys", text, "others can read the hashes' secret: chmod 600 " + path);
  }
  return (*file)->ring()->size() > 0 ? Ok("keys", text) : Warning("keys", text, "weir keys create makes one");
}

Finding CheckServer(const ServerOptions& options) {
  const auto client = InferenceClient::Connect(options);
  if (!client.ok()) return Failure("gateway", std::string(client.status().message()), "");
  const auto models = (*client)->ListModels();
  if (!models.ok()) return Failure("gateway", std::string(models.status().message()), "");
  std::string ready, waiting;
  for (const v1::Model& model : models->models())
    absl::StrAppend(model.is_ready() ? &ready : &waiting, " ", model.name());
  if (!waiting.empty()) {
    return Warning("gateway", absl::StrCat(options.address, ": not ready:", waiting),
                   "look at /readyz of its ops port, and at the scheduler's");
  }
  return Ok("gateway", absl::StrCat(options.address, " serves", ready));
}

// ---- the command ----

std::vector<Finding> Examine(const DoctorOptions& options) {
  std::vector<Finding> findings = {CheckPrograms(), CheckProcessor(), CheckCores(options.tp * options.dp),
                                   CheckOpenFiles(), CheckRunDirectory()};
  if (!options.asks_server) {
    findings.push_back(CheckPort("port", options.port, "--port"));
    findings.push_back(CheckPort("ops port", options.ops_port, "--ops-port"));
    findings.push_back(CheckPort("ops port", options.ops_port + 1, "--ops-port"));
  }
  if (!options.model.empty()) CheckModel(options, findings);
  if (!options.keys.empty()) findings.push_back(CheckKeys(options.keys));
  if (options.asks_server) findings.push_back(CheckServer(options.server));
  return findings;
}

const char* NameOf(Verdict verdict) {
  return verdict == Verdict::kOk ? "ok" : verdict == Verdict::kWarning ? "warn" : "FAIL";
}

void Print(const Finding& finding) {
  const bool is_well = finding.verdict == Verdict::kOk;
  std::printf("%s%-4s%s  %-11s %s\n", is_well ? "" : BoldOn(), NameOf(finding.verdict), is_well ? "" : LookOff(),
              finding.subject.c_str(), finding.text.c_str());
  if (!finding.advice.empty()) std::printf("                  -> %s\n", finding.advice.c_str());
}

void PrintJson(const std::vector<Finding>& findings) {
  nlohmann::json list = nlohmann::json::array();
  for (const Finding& finding : findings) {
    list.push_back({{"check", finding.subject},
                    {"verdict", finding.verdict == Verdict::kFailure ? "fail" : NameOf(finding.verdict)},
                    {"text", finding.text},
                    {"advice", finding.advice}});
  }
  std::printf("%s\n", list.dump(2).c_str());
}

}  // namespace

void AddDoctor(CLI::App& app) {
  auto options = std::make_shared<DoctorOptions>();
  CLI::App* command = app.add_subcommand("doctor", "Check whether this machine can serve, and say what to do");
  command->footer(kExamples);
  command->add_option("--model", options->model, "checkpoint directory to check as well");
  command->add_option("--tp", options->tp, "tensor-parallel ranks")->check(CLI::Range(1, 1024))->capture_default_str();
  command->add_option("--dp", options->dp, "data-parallel groups")->check(CLI::Range(1, 1024))->capture_default_str();
  command->add_option("--port", options->port, "of the gateway")->check(CLI::Range(1, 65535))->capture_default_str();
  command->add_option("--ops-port", options->ops_port, "of the gateway's metrics; the scheduler's is the next")
      ->check(CLI::Range(1, 65534))
      ->capture_default_str();
  command->add_option("--keys", options->keys, "keys file to check as well");
  command->add_flag("--json", options->prints_json, "print a JSON list");
  AddServerOptions(*command, options->server);
  command->callback([options, command] {
    options->asks_server = command->count("--server") > 0;
    const std::vector<Finding> findings = Examine(*options);
    if (options->prints_json) {
      PrintJson(findings);
    } else {
      for (const Finding& finding : findings) Print(finding);
    }
    const bool has_failed =
        std::any_of(findings.begin(), findings.end(), [](const Finding& f) { return f.verdict == Verdict::kFailure; });
    if (has_failed) throw CLI::RuntimeError(1);
  });
}

}  // namespace weir::tools
