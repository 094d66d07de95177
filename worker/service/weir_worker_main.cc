// weir-worker: one rank of one replica as a process.

#include <signal.h>
#include <unistd.h>

#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "channels/lock_checks.h"
#include "config/build_id.h"
#include "config/config.h"
#include "process/ending_signals.h"
#include "process/log.h"
#include "worker/backend_choice.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/unreadable_files.h"
#include "worker/communicator/communicator.h"
#include "worker/rank.h"
#include "worker/service/rank_engine.h"
#include "worker/service/worker_service.h"

namespace weir::worker {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kTick{50};

struct Flags {
  std::string model;
  BackendChoice backend;
  RankOptions rank;
  std::string listen;
  std::string communicator;
  int64_t watchdog_ms = 60'000;
  int64_t drain_timeout_ms = 30'000;
  process::LogOptions log;
};

const std::map<std::string, WeightDType> kDTypes = {
    {"auto", WeightDType::kAuto}, {"bf16", WeightDType::kBFloat16}, {"f32", WeightDType::kFloat32}};

void AddFlags(CLI::App& app, Flags& flags) {
  app.add_option("--model", flags.model, "checkpoint directory, as published on HuggingFace")->required();
  app.add_option("--tp", flags.rank.layout.tp, "ranks that split attention between them")->check(CLI::Range(1, 4096));
  app.add_option("--dp", flags.rank.layout.dp, "groups that each hold their own sequences")->check(CLI::Range(1, 4096));
  app.add_option("--rank", flags.rank.layout.rank, "this rank, 0 to tp * dp - 1")->check(CLI::Range(0, 1 << 24));
  app.add_option("--backend", flags.backend.name, "what computes: cpu or reference")->capture_default_str();
  app.add_option("--isa", flags.backend.isa, "cpu: force an instruction set; empty = the fastest here");
  app.add_option("--threads", flags.backend.num_threads, "cpu: threads; 0 = the processors this process may run on")
      ->check(CLI::Range(0, 4096));
  app.add_option("--listen", flags.listen, "where the scheduler connects: unix:/path or host:port")->required();
  app.add_option("--communicator", flags.communicator,
                 "where the other ranks connect: unix:/path or host:port; needed with more than one rank");
  app.add_option("--num-blocks", flags.rank.num_blocks, "blocks of the latent cache, the same on every rank")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_flag("--allow-overcommit", flags.rank.allows_overcommit,
               "load although memory does not suffice by the sums; the system may then end the process at any time");
  app.add_option("--block-size", flags.rank.block_size, "tokens of a block")->capture_default_str();
  app.add_option("--max-num-seqs", flags.rank.max_num_seqs, "sequences at once, per data-parallel group")
      ->capture_default_str();
  app.add_option("--max-num-batched-tokens", flags.rank.max_num_batched_tokens,
                 "rows of one step, per data-parallel group")
      ->capture_default_str();
  app.add_option("--max-model-len", flags.rank.max_model_len, "longest sequence; 0 = the model's own")
      ->capture_default_str();
  app.add_option("--dtype", flags.rank.weight_dtype, "arithmetic of the weights: auto = as stored, bf16, f32")
      ->transform(CLI::CheckedTransformer(kDTypes).description(""))
      ->type_name("auto|bf16|f32")
      ->default_str("auto");
  app.add_option("--watchdog-ms", flags.watchdog_ms, "ends a process whose engine is stuck this long; 0 = never")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  app.add_option("--drain-timeout-ms", flags.drain_timeout_ms, "how long a drain may take before the process ends")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  process::AddLogOptions(app, flags.log);
}

// What one option alone cannot tell; empty when the flags fit together.
std::string WrongUsage(const Flags& flags) {
  const ParallelLayout& layout = flags.rank.layout;
  if (layout.rank >= layout.world_size()) {
    return "--rank " + std::to_string(layout.rank) + " of " + std::to_string(layout.world_size()) +
           " ranks; with --tp and --dp as given it is 0 to " + std::to_string(layout.world_size() - 1);
  }
  if (layout.world_size() > 1 && flags.communicator.empty()) {
    return "--communicator is needed with more than one rank";
  }
  return "";
}

int Fail(const std::string& what) {
  spdlog::error("{}", what);
  return 1;
}
int Fail(const absl::Status& status) { return Fail(std::string(status.message())); }

// ---- loading ----

// "loading: 43 % of 12.4 GB, 1.9 GB/s": over and over in one line on a terminal, every tenth as a line of the log
// elsewhere.
class ProgressLine {
 public:
  explicit ProgressLine(const Flags& flags)
      : rank_(flags.rank.layout.rank), is_terminal_(flags.log.format == "text" && ::isatty(STDERR_FILENO) == 1) {}

  void Show(int64_t done, int64_t total) {
    const int percent = total > 0 ? static_cast<int>(done * 100 / total) : 100;
    const auto now = Clock::now();
    // A small file is through before anybody could read a line about its half.
    const bool is_worth_it = done == total || now - start_ > milliseconds(500);
    const bool is_due =
        is_worth_it && (is_terminal_ ? now >= next_ || done == total : percent / 10 > shown_percent_ / 10);
    if (!is_due || percent == shown_percent_) return;
    next_ = now + milliseconds(100);
    shown_percent_ = percent;
    const double seconds = std::max(1e-3, std::chrono::duration<double>(now - start_).count());
    const double gb_per_s = static_cast<double>(done) / 1e9 / seconds;
    if (!is_terminal_) return spdlog::info("loading: {} % of {}, {:.1f} GB/s", percent, Size(total), gb_per_s);
    std::fprintf(stderr, "\rrank %d: loading: %d %% of %s, %.1f GB/s%s", rank_, percent, Size(total).c_str(), gb_per_s,
                 done < total ? "" : "\n");
  }

 private:
  static std::string Size(int64_t num_bytes) {
    char text[32];
    const bool is_large = num_bytes >= 1'000'000'000;
    std::snprintf(text, sizeof text, "%.1f %s", static_cast<double>(num_bytes) / (is_large ? 1e9 : 1e6),
                  is_large ? "GB" : "MB");
    return text;
  }

  const int rank_;
  const bool is_terminal_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point next_;
  int shown_percent_ = -1;
};

// Nothing when the process was asked to end meanwhile.
std::optional<absl::StatusOr<std::unique_ptr<Rank>>> Load(const Checkpoint& checkpoint, const Flags& flags,
                                                          kernels::Backend* backend, WorkerService& service) {
  absl::StatusOr<std::unique_ptr<Rank>> rank = absl::UnknownError("");
  std::atomic<bool> is_done{false};
  ProgressLine line(flags);
  std::thread loader([&] {
    rank = Rank::Load(checkpoint, flags.rank, backend, nullptr, [&](int64_t done, int64_t total) {
      line.Show(done, total);
      service.ReportLoading(done, total);
    });
    is_done = true;
  });
  while (!is_done) {
    if (!process::WasAskedToEnd(kTick)) continue;
    loader.detach();  // it reads on until the process ends, which is next
    return std::nullopt;
  }
  loader.join();
  return rank;
}

// ---- serving ----

absl::StatusOr<std::unique_ptr<Communicator>> FormCommunicator(const Flags& flags, const GroupOrder& order,
                                                               const std::atomic<bool>& cancelled) {
  if (order.addresses[flags.rank.layout.rank] != flags.communicator) {
    return absl::InvalidArgumentError("the group expects rank " + std::to_string(flags.rank.layout.rank) + " at " +
                                      order.addresses[flags.rank.layout.rank] + "; it listens at " +
                                      flags.communicator);
  }
  return NewSocketGroup(SocketGroupOptionsOf(order, flags.rank.layout.rank, cancelled));
}

RankHello HelloOf(const Rank& rank, const Checkpoint& checkpoint, const kernels::Backend& backend, const Flags& flags) {
  const ModelConfig& config = rank.config();
  const RankOptions& options = rank.options();
  return {.manifest_hash = checkpoint.manifest_hash(),
          .rank = options.layout.rank,
          .tp = options.layout.tp,
          .dp = options.layout.dp,
          .num_blocks = options.num_blocks,
          .block_size = options.block_size,
          .max_num_seqs = options.max_num_seqs,
          .max_num_batched_tokens = options.max_num_batched_tokens,
          .max_model_len = options.max_model_len > 0 ? options.max_model_len : config.max_position_embeddings,
          .vocab_size = config.vocab_size,
          .eos_token_ids = config.eos_token_ids,
          .device = std::string(backend.name()) + " " + std::string(backend.detail()),
          .communicator_address = flags.communicator,
          .pid = static_cast<uint64_t>(::getpid())};
}

// Until the drain that a signal or the scheduler asked for is over.
int WaitForEnd(WorkerService& service, const RankEngine& engine, const Flags& flags) {
  std::optional<Clock::time_point> drain_until;
  while (!service.IsDrained()) {
    if (process::WasAskedToEnd(kTick) && !drain_until) {
      spdlog::info("draining: what was ordered is to end within {} ms", flags.drain_timeout_ms);
      drain_until = Clock::now() + milliseconds(flags.drain_timeout_ms);
      service.Drain();
    }
    if (drain_until && Clock::now() > *drain_until) {
      return Fail("the drain took longer than --drain-timeout-ms " + std::to_string(flags.drain_timeout_ms));
    }
    if (flags.watchdog_ms > 0 && engine.BusyFor() > milliseconds(flags.watchdog_ms)) {
      // The engine's thread cannot be ended; the process can.
      std::_Exit(Fail("the engine made no progress for --watchdog-ms " + std::to_string(flags.watchdog_ms)));
    }
  }
  spdlog::info("drained");
  return 0;
}

int Serve(const Flags& flags) {
  const auto checkpoint = Checkpoint::Open(flags.model);
  if (!checkpoint.ok()) return Fail(checkpoint.status());
  const auto backend = NewBackend(flags.backend);
  if (!backend.ok()) return Fail(backend.status());
  if (absl::Status status = CheckLayout((*checkpoint)->config(), flags.rank.layout); !status.ok()) return Fail(status);
  spdlog::info("build {}: rank {} of {} on {} {}: {}", config::BuildId(), flags.rank.layout.rank,
               flags.rank.layout.world_size(), (*backend)->name(), (*backend)->detail(),
               EstimateMemory(**checkpoint, flags.rank).ToString());

  std::unique_ptr<RankEngine> engine;
  auto service = WorkerService::Start({.build = std::string(config::BuildId()), .address = flags.listen});
  if (!service.ok()) return Fail(service.status());
  auto rank = Load(**checkpoint, flags, backend->get(), **service);
  if (!rank) {
    service->reset();
    std::_Exit(0);
  }
  if (absl::IsResourceExhausted(rank->status()) && !flags.rank.allows_overcommit) {
    return Fail(std::string(rank->status().message()) + " (--num-blocks, --tp, --max-num-batched-tokens; " +
                "--allow-overcommit loads nevertheless)");
  }
  if (!rank->ok()) return Fail(rank->status());
  const RankHello hello = HelloOf(***rank, **checkpoint, **backend, flags);
  engine = std::make_unique<RankEngine>(**std::move(rank), flags.rank.layout.world_size(),
                                        [&flags](const GroupOrder& order, const std::atomic<bool>& cancelled) {
                                          return FormCommunicator(flags, order, cancelled);
                                        });
  (*service)->Serve(engine.get(), hello);
  spdlog::info("serving at {}", flags.listen);
  return WaitForEnd(**service, *engine, flags);
}

int Main(int argc, char** argv) {
  CLI::App app{"One rank of a Weir replica: loads its shard of a checkpoint and runs the plans of a scheduler."};
  app.footer(
      "Example, two ranks of one replica:\n"
      "  weir-worker --model /models/DeepSeek-V2-Lite --tp 2 --rank 0 --listen unix:/run/w0 --communicator "
      "unix:/run/c0\n"
      "  weir-worker --model /models/DeepSeek-V2-Lite --tp 2 --rank 1 --listen unix:/run/w1 --communicator "
      "unix:/run/c1");
  app.set_version_flag("--version", std::string(config::BuildId()));
  Flags flags;
  flags.rank.num_blocks = 1024;
  AddFlags(app, flags);
  config::AddConfigOptions(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return weir::config::Exit(app, error, argc, argv);
  }
  if (const std::string wrong = WrongUsage(flags); !wrong.empty()) {
    std::fprintf(stderr, "weir-worker: %s\n", wrong.c_str());
    return 2;
  }
  channels::SkipLockChecks();
  process::StartLog(flags.log, "rank " + std::to_string(flags.rank.layout.rank));
  ReportUnreadableFiles([](const char* path) {
    spdlog::critical("{}: {}; put the whole file back and start again", path, kUnreadableFile);
  });
  process::HoldEndingSignals();
  ::signal(SIGPIPE, SIG_IGN);
  return Serve(flags);
}

}  // namespace
}  // namespace weir::worker

int main(int argc, char** argv) { return weir::worker::Main(argc, argv); }
