// weir-scheduler: the process that decides, for one replica, which tokens run in each step.

#include <prometheus/registry.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "channels/lock_checks.h"
#include "config/build_id.h"
#include "config/config.h"
#include "metrics/ops_server.h"
#include "process/ending_signals.h"
#include "process/log.h"
#include "scheduler/service/event_loop.h"
#include "scheduler/service/rank_streams.h"
#include "scheduler/service/scheduler_service.h"

namespace weir::scheduler {
namespace {

constexpr TimeUs kLongestTurnUs = 5'000'000;  // a loop that has not turned for so long does not move
constexpr int64_t kCloseMs = 2000;            // for streams to write what they have when the process ends

struct Flags {
  EventLoopOptions loop;
  ServiceOptions service;
  std::string build{config::BuildId()};
  std::string ops_listen = "127.0.0.1:0";
  int64_t drain_timeout_ms = 30000;
  int64_t step_deadline_ms = 2000;
  int64_t unknown_step_deadline_ms = 10000;
  int64_t collective_deadline_ms = 1800;
  int64_t connect_deadline_ms = 1500;
  int64_t canary_interval_ms = 10000;
  int64_t max_output_mb = 16;
  process::LogOptions log;
};

void AddFlags(CLI::App& app, Flags& flags) {
  app.add_option("--rank", flags.loop.group.addresses,
                 "address of a worker rank (host:port or unix:/path); once for each rank, in rank order")
      ->required();
  app.add_option("--listen", flags.service.listen, "where gateways connect: host:port or unix:/path")
      ->capture_default_str();
  app.add_option("--ops-listen", flags.ops_listen, "host:port of /metrics, /healthz and /readyz")
      ->capture_default_str();
  app.add_option("--build", flags.build, "build that ranks must have; for tests")->capture_default_str();

  app.add_option("--max-waiting-requests", flags.loop.max_num_waiting, "bound of the queue, in requests")
      ->check(CLI::Range(1, 100'000'000))
      ->capture_default_str();
  app.add_option("--max-waiting-tokens", flags.loop.max_waiting_tokens, "bound of the queue, in prompt tokens")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str();
  app.add_option("--max-tenants", flags.loop.max_tenants, "nodes of the tenant tree")
      ->check(CLI::Range(2, 1'000'000))
      ->capture_default_str();
  app.add_option("--max-steps-in-flight", flags.loop.max_steps_in_flight,
                 "steps planned and not completed; 2: the next is at the ranks before one ends")
      ->check(CLI::Range(1, 2))
      ->capture_default_str();
  app.add_option("--max-prompt-tokens-while-decoding", flags.loop.policy.max_prompt_tokens_while_decoding,
                 "prompt tokens of a step that also decodes: bounds the time between two tokens of a stream")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--max-preemptions", flags.loop.policy.max_preemptions, "of one request; then it is pinned")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  app.add_option("--max-worker-losses", flags.loop.policy.max_worker_losses,
                 "a request in flight at so many losses is quarantined")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--max-output-mb", flags.max_output_mb, "what may gather for a gateway that does not read")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();

  const auto ms = CLI::Range(int64_t{1}, int64_t{3'600'000});
  app.add_option("--step-deadline-ms", flags.step_deadline_ms,
                 "a step without result for so long, and for 5 times its usual time, ends the epoch")
      ->check(ms)
      ->capture_default_str();
  app.add_option("--unknown-step-deadline-ms", flags.unknown_step_deadline_ms,
                 "the same while nothing is known about steps of that size")
      ->check(ms)
      ->capture_default_str();
  app.add_option("--collective-deadline-ms", flags.collective_deadline_ms, "how long a rank waits for another")
      ->check(ms)
      ->capture_default_str();
  app.add_option("--connect-deadline-ms", flags.connect_deadline_ms, "how long ranks may take to form a group")
      ->check(ms)
      ->capture_default_str();
  app.add_option("--canary-interval-ms", flags.canary_interval_ms, "an idle group proves itself this often")
      ->check(ms)
      ->capture_default_str();
  app.add_flag("--kill-hung-local-ranks", flags.loop.group.kills_hung_local_ranks,
               "SIGKILL a rank on this host that does not take part, for its supervisor to start it anew");
  app.add_option("--drain-timeout-ms", flags.drain_timeout_ms,
                 "after SIGTERM, how long requests may take to end before gateways take them elsewhere")
      ->check(ms)
      ->capture_default_str();
  process::AddLogOptions(app, flags.log);
}

void Convert(Flags& flags) {
  flags.loop.group.step_deadline_us = flags.step_deadline_ms * 1000;
  flags.loop.group.unknown_step_deadline_us = flags.unknown_step_deadline_ms * 1000;
  flags.loop.group.collective_deadline_us = flags.collective_deadline_ms * 1000;
  flags.loop.group.connect_deadline_us = flags.connect_deadline_ms * 1000;
  flags.loop.canary_interval_us = flags.canary_interval_ms * 1000;
  flags.service.max_output_bytes = flags.max_output_mb << 20;
  flags.service.build = flags.build;
}

// Names of cached blocks live as long as the process, and so does their secret.
BlockKeySecret NewSecret() {
  BlockKeySecret secret;
  size_t num_bytes = 0;
  while (num_bytes < secret.bytes.size()) {
    const ssize_t more = getrandom(secret.bytes.data() + num_bytes, secret.bytes.size() - num_bytes, 0);
    if (more > 0) num_bytes += static_cast<size_t>(more);
  }
  return secret;
}

std::string Liveness(const ReplicaBoard& board) {
  const TimeUs idle = NowUs() - board.Read().heartbeat;
  return idle < kLongestTurnUs ? "" : "the event loop has not turned for " + std::to_string(idle / 1000) + " ms";
}

int Fail(const std::string& error) {
  spdlog::error("{}", error);
  return 1;
}

// Waits for SIGTERM or SIGINT; keeps the health service up to date meanwhile.
void ServeUntilSignalled(SchedulerServer& server, const ReplicaBoard& board) {
  while (!process::WasAskedToEnd(std::chrono::milliseconds(100))) server.SetServing(board.Read().is_ready);
  server.SetServing(false);
}

int Run(const Flags& flags) {
  channels::SkipLockChecks();
  process::HoldEndingSignals();
  auto registry = std::make_shared<prometheus::Registry>();
  SchedulerMetrics metrics(registry, static_cast<int32_t>(flags.loop.group.addresses.size()), flags.build);
  ReplicaBoard board;
  Inbox inbox({});
  RankStreams ranks(flags.loop.group.addresses, flags.build, &inbox);
  EventLoop loop(flags.loop, &inbox, &ranks, &board, &metrics);

  std::string error;
  const auto server = SchedulerServer::Start(flags.service, &inbox, &board, error);
  if (server == nullptr) return Fail(error);
  auto ops = metrics::OpsServer::Start({.listen = flags.ops_listen,
                                        .liveness = [&board] { return Liveness(board); },
                                        .readiness = [&board] { return board.Read().why_not_ready; }},
                                       registry);
  if (!ops.ok()) return Fail(std::string(ops.status().message()));

  spdlog::info("build {}: gateways connect at {} (port {}), metrics at port {}", flags.build, flags.service.listen,
               server->port(), (*ops)->port());
  bool has_finished_all = false;
  std::thread thread([&] { has_finished_all = loop.Run(); });
  ServeUntilSignalled(*server, board);
  inbox.Push(DrainOrder{.patience_us = flags.drain_timeout_ms * 1000});
  thread.join();
  server->Shutdown(kCloseMs);
  spdlog::info("drained: {}", has_finished_all ? "every request has ended" : "some requests were handed back");
  return 0;
}

}  // namespace
}  // namespace weir::scheduler

int main(int argc, char** argv) {
  CLI::App app(
      "weir-scheduler: decides for one replica which tokens run in each step, and serves gateways.\n"
      "Example: weir-scheduler --listen 127.0.0.1:7100 --rank unix:/run/weir/rank0 --rank unix:/run/weir/rank1");
  weir::scheduler::Flags flags;
  weir::scheduler::AddFlags(app, flags);
  weir::config::AddConfigOptions(app);
  app.set_version_flag("--version", std::string(weir::config::BuildId()));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return weir::config::Exit(app, error, argc, argv);
  }
  weir::scheduler::Convert(flags);
  weir::process::StartLog(flags.log, "scheduler");
  flags.service.secret = weir::scheduler::NewSecret();
  return weir::scheduler::Run(flags);
}
