// What serving costs: the same requests through gateway, scheduler and a rank process, and on a bare rank in this
// process, in turn.

#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "channels/lock_checks.h"
#include "kernels/check.h"
#include "tools/bench/bench_model.h"
#include "tools/bench/ceilings.h"
#include "tools/weir/client/inference_client.h"
#include "tools/weir/cluster/child_process.h"
#include "tools/weir/load/load_plan.h"
#include "tools/weir/load/load_report.h"
#include "tools/weir/load/load_run.h"
#include "tools/weir/program_directory.h"
#include "worker/backend_choice.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/rank.h"

namespace weir::tools {
namespace {

using worker::Checkpoint;
using worker::Rank;
using worker::SequenceWork;
using worker::StepPlan;
using worker::StepResult;

constexpr int32_t kMaxStreams = 32;

struct Options {
  std::string cache = DefaultBenchCache();
  std::string dtype = "bf16";
  std::string json;
  std::string scheduler_config;
  std::vector<int32_t> streams = {1, 8, 32};
  int32_t input_tokens = 128, output_tokens = 64;
  int32_t threads = 0;
  int32_t batched_tokens = 2048;
  int32_t rounds = 3;
};

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "\nbench_serve: %s\n", what.c_str());
  std::exit(1);
}

// A line on a terminal that is written over.
void Progress(const std::string& what) {
  if (isatty(STDERR_FILENO) == 1) std::fprintf(stderr, "\r%s\033[K", what.c_str());
}

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) Fail(std::string(value.status().message()));
  return *std::move(value);
}

double NowS() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// ---- processor time ----

// Of this process, all threads.
double OwnCpuS() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// What the children of a process have used so far, its ranks and the others apart.
struct ChildrenCpu {
  double ranks_s = 0, others_s = 0;
};

ChildrenCpu CpuOfChildren(pid_t parent) {
  ChildrenCpu cpu;
  const double ticks_per_s = static_cast<double>(sysconf(_SC_CLK_TCK));
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    std::ifstream file(entry.path() / "stat");
    std::string pid, name, state, skipped;
    pid_t its_parent = 0;
    double user = 0, system = 0;
    if (!(file >> pid >> name >> state >> its_parent) || its_parent != parent) continue;
    for (int i = 0; i < 9; ++i) file >> skipped;  // up to majflt and cmajflt: see proc(5)
    file >> user >> system;
    (name == "(weir-worker)" ? cpu.ranks_s : cpu.others_s) += (user + system) / ticks_per_s;
  }
  return cpu;
}

// ---- the bare rank ----

// Prefills all prompts, as many in a step as fit, and then decodes them together: the best a scheduler can do with
// requests that come at once.
class BareRank {
 public:
  BareRank(const Checkpoint& checkpoint, const Options& options) : options_(options) {
    backend_ = Must(worker::NewBackend({.num_threads = options.threads}));
    worker::RankOptions rank;
    blocks_per_seq_ = (options.input_tokens + options.output_tokens + rank.block_size - 1) / rank.block_size;
    rank.num_blocks = int64_t{blocks_per_seq_} * kMaxStreams;
    rank.max_num_seqs = kMaxStreams;
    rank.max_num_batched_tokens = options.batched_tokens;
    rank_ = Must(Rank::Load(checkpoint, rank, backend_.get(), nullptr, nullptr));
  }

  std::string detail() const { return std::string(backend_->detail()); }

  // Seconds for `prompts`, each continued greedily.
  double Run(const std::vector<std::vector<uint32_t>>& prompts) {
    const double start_s = NowS();
    tokens_.assign(prompts.size(), 0);
    const int32_t per_step = std::max(1, options_.batched_tokens / options_.input_tokens);
    const auto count = static_cast<int32_t>(prompts.size());
    for (int32_t first = 0; first < count; first += per_step) {
      StepPlan plan;
      for (int32_t slot = first; slot < std::min(count, first + per_step); ++slot) {
        plan.work.push_back(Prompt(slot, prompts[static_cast<size_t>(slot)]));
      }
      Step(plan);
    }
    for (int32_t i = 1; i < options_.output_tokens; ++i) {
      StepPlan plan;
      for (int32_t slot = 0; slot < count; ++slot) plan.work.push_back(Token(slot, options_.input_tokens + i - 1));
      Step(plan);
    }
    return NowS() - start_s;
  }

 private:
  SequenceWork Prompt(int32_t slot, const std::vector<uint32_t>& ids) const {
    SequenceWork work;
    work.slot = slot;
    work.num_tokens = static_cast<int32_t>(ids.size());
    work.samples = true;
    work.has_setup = true;
    work.setup.num_prompt_tokens = work.num_tokens;
    work.setup.token_ids.assign(ids.begin(), ids.end());
    work.setup.sampling.temperature = 0.0f;
    for (int32_t i = 0; i < blocks_per_seq_; ++i) work.new_block_ids.push_back(slot * blocks_per_seq_ + i);
    return work;
  }

  SequenceWork Token(int32_t slot, int32_t position) const {
    SequenceWork work;
    work.slot = slot;
    work.first_position = position;
    work.num_tokens = 1;
    work.token_ids = {tokens_[static_cast<size_t>(slot)]};
    work.samples = true;
    return work;
  }

  void Step(StepPlan& plan) {
    plan.step_id = ++step_id_;
    const StepResult result = Must(rank_->Run(plan));
    for (const worker::SequenceResult& sequence : result.sequences) {
      if (!sequence.error.empty()) Fail("the bare rank: " + sequence.error);
      tokens_[static_cast<size_t>(sequence.slot)] = sequence.sampled.token;
    }
  }

  const Options& options_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Rank> rank_;
  int32_t blocks_per_seq_ = 0;
  std::vector<int32_t> tokens_;  // the last of each slot
  uint64_t step_id_ = 0;
};

// ---- the cluster ----

// `weir up` as a child, until this object goes.
class Cluster {
 public:
  Cluster(const std::string& model, const Options& options)
      : child_(Must(ChildProcess::Start(Command(model, options)))) {
    const double give_up_s = NowS() + 300;
    std::string said;
    while (address_.empty()) {
      if (NowS() > give_up_s || child_.output_fd() < 0) Fail("the cluster did not start; it said:\n" + said);
      child_.ReadLines([&](std::string_view line) {
        absl::StrAppend(&said, "  ", std::string(line), "\n");
        if (line.starts_with("serving ")) address_ = std::string(line.substr(line.find_last_of(' ') + 1));
      });
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    client_ = Must(InferenceClient::Connect({.address = address_}));
    model_ = Must(client_->FindModel(""));
  }

  // One request a stream, all at once.
  std::vector<RequestRecord> Run(const std::vector<PlannedRequest>& plan, uint64_t seed) {
    child_.ReadLines([](std::string_view line) { std::fprintf(stderr, "\n%s\n", std::string(line).c_str()); });
    std::vector<RequestRecord> records = RunLoad(*client_, plan, RunOptions(seed), nullptr);
    for (const RequestRecord& record : records) {
      if (!record.error.empty()) Fail("a request failed: " + record.error);
    }
    return records;
  }

  static std::vector<std::string> Command(const std::string& model, const Options& options) {
    std::vector<std::string> argv = {
        ProgramDirectory() + "/weir",
        "up",
        "--model",
        model,
        "--name",
        "bench",
        "--port",
        "0",
        "--ops-port",
        "0",
        absl::StrCat("--threads=", options.threads),
        absl::StrCat("--max-num-batched-tokens=", options.batched_tokens),
        absl::StrCat("--max-num-seqs=", kMaxStreams),
        absl::StrCat("--max-model-len=", 2 * (options.input_tokens + options.output_tokens))};
    if (!options.scheduler_config.empty()) {
      argv.insert(argv.end(), {"--scheduler-config", options.scheduler_config});
    }
    return argv;
  }

  ChildrenCpu Cpu() const { return CpuOfChildren(child_.pid()); }

  LoadRunOptions RunOptions(uint64_t seed) const {
    return {.model = model_.name(), .vocab_size = model_.vocab_size(), .avoided_ids = {0, 1}, .seed = seed};
  }

 private:
  ChildProcess child_;
  std::string address_;
  std::unique_ptr<InferenceClient> client_;
  v1::Model model_;
};

// ---- the table ----

struct Case {
  int32_t streams = 0;
  std::vector<double> engine, served;  // tokens/s, one a round
  // Processor seconds of all rounds: of the bare rank, of the rank that serves, of gateway, scheduler and client.
  double engine_cpu_s = 0, rank_cpu_s = 0, shells_cpu_s = 0;
  std::vector<RequestRecord> records;  // of all rounds
};

struct Row {
  int32_t streams = 0;
  double engine = 0, served = 0, lost = 0;
  double engine_cpu_ms = 0, rank_cpu_ms = 0, shells_cpu_ms = 0;  // processor time an output token
  double extra_cpu() const { return (rank_cpu_ms + shells_cpu_ms) / engine_cpu_ms - 1; }
  LoadReport report;
};

Row RowOf(const Case& c) {
  const double engine = Median(c.engine), served = Median(c.served);
  const LoadReport report = Summarize(c.records, {});
  const double ms_per_token = 1e3 / static_cast<double>(report.num_output_tokens);
  return {c.streams,
          engine,
          served,
          1 - served / engine,
          c.engine_cpu_s * ms_per_token,
          c.rank_cpu_s * ms_per_token,
          c.shells_cpu_s * ms_per_token,
          report};
}

void RunRound(const Options& options, int32_t round, BareRank& engine, Cluster& cluster, Case& c) {
  // Other prompts every round: no prefix is cached.
  const uint64_t seed = static_cast<uint64_t>(round) * 1000 + static_cast<uint64_t>(c.streams);
  const std::vector<PlannedRequest> plan = PlanPoisson(c.streams, 0, options.input_tokens, options.output_tokens, seed);
  std::vector<std::vector<uint32_t>> prompts;
  const LoadRunOptions run = cluster.RunOptions(seed);
  for (size_t i = 0; i < plan.size(); ++i) {
    prompts.push_back(PromptIds(plan[i], seed, i, run.vocab_size, run.avoided_ids));
  }
  const double tokens = static_cast<double>(c.streams) * options.output_tokens;
  const double before_engine_s = OwnCpuS();
  c.engine.push_back(tokens / engine.Run(prompts));
  const double after_engine_s = OwnCpuS();
  const ChildrenCpu before = cluster.Cpu();
  const double before_client_s = OwnCpuS();
  const std::vector<RequestRecord> records = cluster.Run(plan, seed);
  const double after_client_s = OwnCpuS();
  const ChildrenCpu after = cluster.Cpu();
  c.engine_cpu_s += after_engine_s - before_engine_s;
  c.rank_cpu_s += after.ranks_s - before.ranks_s;
  c.shells_cpu_s += after.others_s - before.others_s + after_client_s - before_client_s;
  c.served.push_back(Summarize(records, {}).output_tokens_per_s());
  c.records.insert(c.records.end(), records.begin(), records.end());
}

void Print(const std::vector<Row>& rows) {
  std::printf("%8s %14s %10s %8s %10s %10s %10s %10s | %-30s\n", "", "bare", "served", "", "TTFT", "TTFT", "TPOT",
              "ITL", "processor ms per output token");
  std::printf("%8s %14s %10s %8s %10s %10s %10s %10s | %10s %10s %8s %8s\n", "streams", "tokens/s", "tokens/s", "lost",
              "p50", "p99", "p50", "p99", "bare rank", "its rank", "shells", "extra");
  for (const Row& row : rows) {
    std::printf("%8d %14.1f %10.1f %7.1f%% %7.0f ms %7.0f ms %7.1f ms %7.1f ms | %10.2f %10.2f %8.2f %+7.1f%%\n",
                row.streams, row.engine, row.served, 100 * row.lost, row.report.ttft_ms.p50, row.report.ttft_ms.p99,
                row.report.tpot_ms.p50, row.report.itl_ms.p99, row.engine_cpu_ms, row.rank_cpu_ms, row.shells_cpu_ms,
                100 * row.extra_cpu());
  }
  std::printf(
      "\nshells: gateway, scheduler and the client.  On a machine that others use as well, the processor times are "
      "what can be trusted.\n");
}

bool WriteJson(const Options& options, const std::string& detail, const std::vector<Row>& rows) {
  nlohmann::json list = nlohmann::json::array();
  for (const Row& row : rows) {
    list.push_back({{"streams", row.streams},
                    {"engine_tokens_per_s", row.engine},
                    {"served_tokens_per_s", row.served},
                    {"share_lost", row.lost},
                    {"cpu_ms_per_token",
                     {{"engine", row.engine_cpu_ms},
                      {"rank", row.rank_cpu_ms},
                      {"shells", row.shells_cpu_ms},
                      {"extra_share", row.extra_cpu()}}},
                    {"latencies", ToJson(row.report, {})}});
  }
  std::ofstream file(options.json);
  file << nlohmann::json{{"machine", MachineName()},
                         {"backend", detail},
                         {"dtype", options.dtype},
                         {"input_tokens", options.input_tokens},
                         {"output_tokens", options.output_tokens},
                         {"rounds", options.rounds},
                         {"rows", list}}
              .dump(2)
       << "\n";
  return file.good();
}

int Run(Options options) {
  if (options.threads == 0) options.threads = static_cast<int32_t>(std::thread::hardware_concurrency());
  const std::string model = Must(MakeBenchModel(options.cache, options.dtype, [](int64_t done, int64_t total) {
    std::fprintf(stderr, "\rwriting the model: %3lld %%%s", static_cast<long long>(100 * done / total),
                 done == total ? "\n" : "");
  }));
  Progress("loading the model twice");
  const std::unique_ptr<Checkpoint> checkpoint = Must(Checkpoint::Open(model));
  BareRank engine(*checkpoint, options);
  Cluster cluster(model, options);
  std::vector<Case> cases;
  for (const int32_t streams : options.streams) cases.push_back({.streams = streams});
  Case warmup{.streams = 1};
  RunRound(options, options.rounds, engine, cluster, warmup);
  for (int32_t round = 0; round < options.rounds; ++round) {
    for (Case& c : cases) {
      Progress(absl::StrCat("round ", round + 1, " of ", options.rounds, ", ", c.streams, " streams"));
      RunRound(options, round, engine, cluster, c);
    }
  }
  Progress("");
  std::vector<Row> rows;
  for (const Case& c : cases) rows.push_back(RowOf(c));
  std::printf("%s; %s; %s, %d tokens in, %d out, medians of %d rounds\n\n", MachineName().c_str(),
              engine.detail().c_str(), options.dtype.c_str(), options.input_tokens, options.output_tokens,
              options.rounds);
  Print(rows);
  if (!options.json.empty() && !WriteJson(options, engine.detail(), rows)) Fail("cannot write " + options.json);
  return 0;
}

}  // namespace
}  // namespace weir::tools

int main(int argc, char** argv) {
  weir::channels::SkipLockChecks();
  CLI::App app(
      "What serving costs: streams of 128 tokens in and 64 out through gateway, scheduler and a rank process, beside "
      "the "
      "same work on a bare rank in this process, in turn.  Needs weir and its programs in the same directory.\n\n"
      "Example: bench_serve --streams 1,8 --rounds 1");
  weir::tools::Options options;
  app.add_option("--cache", options.cache, "where the models are kept (default: ~/.cache/weir/bench)");
  app.add_option("--dtype", options.dtype, "bf16 or fp8")->check(CLI::IsMember({"bf16", "fp8"}))->capture_default_str();
  app.add_option("--streams", options.streams, "how many at once, separated by commas (default 1,8,32)")
      ->delimiter(',')
      ->check(CLI::Range(1, weir::tools::kMaxStreams));
  app.add_option("--input-tokens", options.input_tokens, "of each prompt")
      ->check(CLI::Range(1, 2048))
      ->capture_default_str();
  app.add_option("--output-tokens", options.output_tokens, "of each answer")
      ->check(CLI::Range(2, 4096))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "of the rank (default: all processors)")->check(CLI::Range(0, 4096));
  app.add_option("--max-num-batched-tokens", options.batched_tokens, "rows of a step")
      ->check(CLI::Range(2048, 1 << 16))
      ->capture_default_str();
  app.add_option("--scheduler-config", options.scheduler_config, "YAML file for the scheduler")
      ->check(CLI::ExistingFile);
  app.add_option("--rounds", options.rounds, "interleaved rounds; the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--json", options.json, "write the table to this file as well");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return weir::tools::Run(options);
}
