// weir bench serve: load on a gateway, and what it does to latencies.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "tools/sim/request_trace.h"
#include "tools/weir/client/inference_client.h"
#include "tools/weir/client/interrupt.h"
#include "tools/weir/commands.h"
#include "tools/weir/load/load_plan.h"
#include "tools/weir/load/load_report.h"
#include "tools/weir/load/load_run.h"

namespace weir::tools {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  weir bench serve --rate 4 --requests 200 --input-tokens 512 --output-tokens 128 --slo-ttft-ms 500\n"
    "      open loop: 4 requests/s on average, arriving as a Poisson process, whether the others have ended or not\n"
    "  weir bench serve --concurrency 32 --requests 320\n"
    "      closed loop: 32 requests at any time\n"
    "  weir bench serve --trace conversation.csv --speed 2 --limit 1000 --output result.json\n"
    "      arrivals and lengths of a recorded trace, twice as fast\n"
    "Latencies of the open loop count from the moment when a request was due.  Ctrl-C ends the test and reports on "
    "the\n"
    "requests that had ended (exit code 130); a second Ctrl-C ends at once.";

struct BenchOptions {
  ServerOptions server;
  std::string model;
  double rate_per_s = 0;
  int32_t concurrency = 0;
  std::string trace;
  double speed = 1, scale = 1;
  int64_t limit = 0;
  int32_t num_requests = 100;
  int32_t num_warmups = 1;
  int32_t input_tokens = 128, output_tokens = 64;
  uint64_t seed = 1;
  double timeout_s = 600;
  Slo slo;
  bool prints_json = false;
  std::string output;
};

// A bar on a terminal, nothing elsewhere.
std::function<void(const LoadProgress&)> Bar(int64_t num_requests) {
  if (isatty(STDERR_FILENO) == 0) return nullptr;
  return [num_requests](const LoadProgress& progress) {
    constexpr int kWidth = 28;
    const std::string bar(static_cast<size_t>(progress.num_ended * kWidth / std::max<int64_t>(1, num_requests)), '#');
    std::fprintf(stderr, "\r[%-*s] %lld of %lld, %lld running, %lld failed, %.0f tokens/s \033[K", kWidth, bar.c_str(),
                 static_cast<long long>(progress.num_ended), static_cast<long long>(num_requests),
                 static_cast<long long>(progress.num_running), static_cast<long long>(progress.num_failed),
                 static_cast<double>(progress.num_output_tokens) / std::max(1e-3, progress.elapsed_s));
  };
}

void SayTrace(const BenchOptions& options, const sim::RequestTrace& trace, int64_t max_model_len) {
  std::fprintf(stderr, "%s: %zu requests over %.1f s (speed %g, lengths x %g)\n", options.trace.c_str(),
               trace.requests.size(), static_cast<double>(trace.requests.back().arrival_us) * 1e-6, options.speed,
               options.scale);
  const auto num_shortened = static_cast<long long>(CountShortened(trace, max_model_len));
  if (num_shortened == 0) return;
  std::fprintf(stderr, "%lld of them are shortened to the model's context of %lld tokens; --scale shortens all alike\n",
               num_shortened, static_cast<long long>(max_model_len));
}

absl::StatusOr<std::vector<PlannedRequest>> Plan(const BenchOptions& options, const v1::Model& model) {
  const auto max_model_len = static_cast<int64_t>(model.max_model_len());
  if (!options.trace.empty()) {
    absl::StatusOr<sim::RequestTrace> trace = sim::ReadTrace(options.trace, options.limit);
    if (!trace.ok()) return trace.status();
    sim::Rescale(options.scale, options.speed, *trace);
    SayTrace(options, *trace, max_model_len);
    return PlanTrace(*trace, options.scale, max_model_len);
  }
  if (options.input_tokens + options.output_tokens > max_model_len) {
    return absl::InvalidArgumentError(absl::StrCat("--input-tokens and --output-tokens make ",
                                                   options.input_tokens + options.output_tokens, " tokens; ",
                                                   model.name(), " takes ", max_model_len));
  }
  return PlanPoisson(options.num_requests, options.rate_per_s, options.input_tokens, options.output_tokens,
                     options.seed);
}

// What a report was made under.
nlohmann::json LoadJson(const BenchOptions& options, const std::string& model) {
  nlohmann::json load = {{"model", model}, {"num_warmups", options.num_warmups}, {"seed", options.seed}};
  if (!options.trace.empty()) {
    load.update({{"trace", options.trace}, {"speed", options.speed}, {"scale", options.scale}});
    return load;
  }
  load.update({{"input_tokens", options.input_tokens}, {"output_tokens", options.output_tokens}});
  if (options.rate_per_s > 0) {
    load["rate_per_s"] = options.rate_per_s;
  } else {
    load["concurrency"] = options.concurrency;
  }
  return load;
}

// The file of --output: opened before the test, so that a test of an hour is not lost to a name that cannot be written.
class OutputFile {
 public:
  absl::Status Open(const std::string& path) {
    if (path.empty()) return absl::OkStatus();
    path_ = path;
    file_.open(path, std::ios::trunc);
    return file_ ? absl::OkStatus() : Failure();
  }
  absl::Status Write(const nlohmann::json& report) {
    if (path_.empty()) return absl::OkStatus();
    file_ << report.dump(2) << std::endl;
    return file_ ? absl::OkStatus() : Failure();
  }

 private:
  absl::Status Failure() const {
    return absl::UnavailableError(absl::StrCat("--output: cannot write ", path_, ": ", std::strerror(errno)));
  }
  std::string path_;
  std::ofstream file_;
};

absl::Status Report(const BenchOptions& options, const std::string& model, const std::vector<RequestRecord>& records,
                    int64_t num_planned, OutputFile& file) {
  LoadReport report = Summarize(records, options.slo);
  report.num_unsent = num_planned - std::ssize(records);
  nlohmann::json json = ToJson(report, options.slo);
  json["load"] = LoadJson(options, model);
  std::printf("%s", options.prints_json ? (json.dump(2) + "\n").c_str() : Table(report, options.slo).c_str());
  json["requests"] = ToJson(records);
  if (absl::Status status = file.Write(json); !status.ok()) return status;
  if (report.num_requests > 0 && report.num_failed == report.num_requests) {
    return absl::AbortedError("every request failed");
  }
  return absl::OkStatus();
}

// `stop`: as for RunLoad.
absl::Status Serve(const BenchOptions& options, const std::atomic<bool>& stop, std::atomic<bool>& is_measuring) {
  OutputFile file;
  if (absl::Status status = file.Open(options.output); !status.ok()) return status;
  const auto client = InferenceClient::Connect(options.server);
  if (!client.ok()) return client.status();
  const auto model = (*client)->FindModel(options.model);
  if (!model.ok()) return model.status();
  const auto plan = Plan(options, *model);
  if (!plan.ok()) return plan.status();
  LoadRunOptions run = {.model = model->name(),
                        .vocab_size = model->vocab_size(),
                        .avoided_ids = {model->eos_token_ids().begin(), model->eos_token_ids().end()},
                        .seed = options.seed,
                        .concurrency = 1,
                        .timeout_s = options.timeout_s,
                        .stop = &stop};
  run.seed = ~options.seed;  // other prompts: what the warm-up leaves in a prefix cache helps nobody
  RunLoad(**client, PlanPoisson(options.num_warmups, 0, plan->front().num_prompt_tokens, 2, 0), run, nullptr);
  run.seed = options.seed;
  run.concurrency = options.concurrency;
  is_measuring = true;
  const std::vector<RequestRecord> records = RunLoad(**client, *plan, run, Bar(static_cast<int64_t>(plan->size())));
  if (isatty(STDERR_FILENO) == 1) std::fprintf(stderr, "\r\033[K");
  return Report(options, model->name(), records, static_cast<int64_t>(plan->size()), file);
}

// The first Ctrl-C of a measurement stops it; any other ends the program.
absl::Status ServeInterruptibly(const BenchOptions& options, bool& was_interrupted) {
  std::atomic<bool> stop{false}, is_measuring{false};
  const Interrupt interrupt([&] { return is_measuring && !stop.exchange(true); });
  absl::Status status = Serve(options, stop, is_measuring);
  was_interrupted = stop;
  return status;
}

void AddLoadOptions(CLI::App& command, BenchOptions& o) {
  const std::string load = "Load";
  auto* rate = command.add_option("--rate", o.rate_per_s, "open loop: requests/s, as a Poisson process")
                   ->check(CLI::Range(1e-6, 1e6))
                   ->group(load);
  auto* concurrency = command.add_option("--concurrency", o.concurrency, "closed loop: requests at any time")
                          ->check(CLI::Range(1, 100'000))
                          ->excludes(rate)
                          ->group(load);
  auto* trace = command.add_option("--trace", o.trace, "open loop: Azure CSV or Mooncake JSONL file")
                    ->check(CLI::ExistingFile)
                    ->excludes(rate)
                    ->excludes(concurrency)
                    ->group(load);
  command.add_option("--speed", o.speed, "multiply the trace's rate of arrivals")
      ->check(CLI::Range(1e-4, 1e4))
      ->needs(trace)
      ->group(load);
  command.add_option("--scale", o.scale, "multiply the trace's lengths")
      ->check(CLI::Range(1e-4, 100.0))
      ->needs(trace)
      ->group(load);
  command.add_option("--limit", o.limit, "use the trace's first N requests only; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->needs(trace)
      ->group(load);
  command.add_option("--requests", o.num_requests, "how many")
      ->check(CLI::Range(1, 10'000'000))
      ->excludes(trace)
      ->capture_default_str()
      ->group(load);
  command.add_option("--input-tokens", o.input_tokens, "of each prompt")
      ->check(CLI::Range(1, 1 << 24))
      ->excludes(trace)
      ->capture_default_str()
      ->group(load);
  command.add_option("--output-tokens", o.output_tokens, "of each answer")
      ->check(CLI::Range(1, 1 << 24))
      ->excludes(trace)
      ->capture_default_str()
      ->group(load);
  command.add_option("--warmup", o.num_warmups, "requests before the measurement")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str()
      ->group(load);
  command.add_option("--seed", o.seed, "of arrivals and prompts")->capture_default_str()->group(load);
  command.add_option("--timeout-s", o.timeout_s, "of one request")
      ->check(CLI::Range(1e-3, 1e6))
      ->capture_default_str()
      ->group(load);
}

}  // namespace

void AddBench(CLI::App& app) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* bench = app.add_subcommand("bench", "Measure a running cluster");
  bench->require_subcommand(1);
  bench->footer("Example: weir bench serve --concurrency 8");
  CLI::App* serve = bench->add_subcommand("serve", "Put load on a gateway: latencies, throughput, goodput");
  serve->footer(kExamples);
  AddLoadOptions(*serve, *options);
  serve->add_option("--model", options->model, "which model; default: the only one");
  serve->add_option("--slo-ttft-ms", options->slo.ttft_ms, "goodput counts requests whose first token is in time")
      ->check(CLI::NonNegativeNumber);
  serve->add_option("--slo-tpot-ms", options->slo.tpot_ms, "... and whose time per further token is")
      ->check(CLI::NonNegativeNumber);
  serve->add_flag("--json", options->prints_json, "print JSON instead of a table");
  serve->add_option("--output", options->output, "write JSON into this file, too: the report, and every request");
  AddServerOptions(*serve, options->server);
  serve->callback([options] {
    if (options->rate_per_s == 0 && options->concurrency == 0 && options->trace.empty()) options->concurrency = 1;
    bool was_interrupted = false;
    const absl::Status status = ServeInterruptibly(*options, was_interrupted);
    if (!status.ok()) std::fprintf(stderr, "weir bench serve: %s\n", std::string(status.message()).c_str());
    if (was_interrupted) throw CLI::RuntimeError(kInterruptedExitCode);
    if (!status.ok()) throw CLI::RuntimeError(1);
  });
}

}  // namespace weir::tools
