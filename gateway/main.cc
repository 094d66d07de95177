// weir-gateway: the process that clients talk to.

#include <prometheus/registry.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "channels/lock_checks.h"
#include "config/build_id.h"
#include "config/config.h"
#include "gateway/models/model_directory.h"
#include "gateway/service/gateway_server.h"
#include "gateway/service/listen_address.h"
#include "metrics/ops_server.h"
#include "process/ending_signals.h"
#include "process/log.h"

namespace weir::gateway {
namespace {

constexpr int64_t kCloseMs = 2000;  // for streams to tell their clients when the process ends

struct Flags {
  std::vector<std::string> models;
  std::vector<std::string> schedulers;
  std::string chat_template = "auto";
  int64_t max_model_len = 0;
  std::string listen = "127.0.0.1:7000";
  std::string ops_listen = "127.0.0.1:0";
  std::string keys;
  std::string tls_certificate;
  std::string tls_key;
  std::string tls_client_ca;
  std::string reflection = "auto";
  std::string name;
  int32_t max_requests = 4096;
  int32_t max_streams_per_connection = 100;
  int32_t max_preparing_mb = 256;
  int32_t text_threads = 0;
  int32_t max_unread_kb = 256;
  int64_t slow_reader_timeout_ms = 30000;
  int64_t replica_timeout_ms = 5000;
  int64_t recovery_timeout_ms = 30000;
  int32_t max_replays = 8;
  int64_t drain_timeout_ms = 30000;
  process::LogOptions log;
};

void AddFlags(CLI::App& app, Flags& flags) {
  app.add_option("--model", flags.models,
                 "NAME=DIR: a model, and the directory with its tokenizer.json and config.json; may be repeated")
      ->required();
  app.add_option("--scheduler", flags.schedulers,
                 "[NAME=]ADDRESS of a replica's scheduler (host:port or unix:/path); may be repeated; NAME says of "
                 "which model when there are several")
      ->required();
  app.add_option("--chat-template", flags.chat_template, "auto, deepseek_v3, deepseek_r1, deepseek_v31 or none")
      ->check(CLI::IsMember({"auto", "deepseek_v3", "deepseek_r1", "deepseek_v31", "none"}))
      ->capture_default_str();
  app.add_option("--max-model-len", flags.max_model_len, "longest sequence in tokens; 0 = the model's own")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
      ->capture_default_str();
  app.add_option("--listen", flags.listen, "where clients connect: host:port or unix:/path")->capture_default_str();
  app.add_option("--ops-listen", flags.ops_listen, "host:port of /metrics, /healthz and /readyz")
      ->capture_default_str();
  app.add_option("--keys", flags.keys, "file of API keys (see weir keys); without it only this machine may connect");
  app.add_option("--tls-certificate", flags.tls_certificate,
                 "PEM file; with --tls-key, clients connect over TLS; read again when it changes");
  app.add_option("--tls-key", flags.tls_key, "PEM file of the certificate's private key");
  app.add_option("--tls-client-ca", flags.tls_client_ca,
                 "PEM file of authorities; then clients must have a certificate of one of them, besides their key");
  app.add_option("--reflection", flags.reflection, "on, off, or auto: on when only this machine may connect")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->capture_default_str();
  app.add_option("--name", flags.name, "names this gateway in the schedulers' logs; default: host and process");

  app.add_option("--max-requests", flags.max_requests, "requests at once, of all tenants")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--max-streams-per-connection", flags.max_streams_per_connection,
                 "of one client; further calls on the connection wait")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  app.add_option("--max-preparing-mb", flags.max_preparing_mb, "requests that wait to be read and tokenized")
      ->check(CLI::Range(8, 65536))
      ->capture_default_str();
  app.add_option("--text-threads", flags.text_threads, "threads that tokenize; 0 = half of the processors")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--max-unread-kb", flags.max_unread_kb,
                 "what may wait for one client that does not read; beyond it its request is cancelled")
      ->check(CLI::Range(16, 1 << 20))
      ->capture_default_str();

  const auto ms = CLI::Range(int64_t{1}, int64_t{3'600'000});
  app.add_option("--slow-reader-timeout-ms", flags.slow_reader_timeout_ms,
                 "a cancelled request's client that reads nothing for so long is cut off")
      ->check(ms)
      ->capture_default_str();
  app.add_option("--replica-timeout-ms", flags.replica_timeout_ms, "a scheduler that says nothing for so long is lost")
      ->check(ms)
      ->capture_default_str();
  app.add_option("--recovery-timeout-ms", flags.recovery_timeout_ms,
                 "how long a request whose replica was lost waits for another, or for its return")
      ->check(ms)
      ->capture_default_str();
  app.add_option("--max-replays", flags.max_replays, "times that one request may lose its replica")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  app.add_option("--drain-timeout-ms", flags.drain_timeout_ms, "after SIGTERM, how long streams may take to end")
      ->check(ms)
      ->capture_default_str();
  process::AddLogOptions(app, flags.log);
}

int Fail(const std::string& error) {
  spdlog::error("{}", error);
  return 1;
}

std::string HostAndProcess() {
  char host[256] = "";
  ::gethostname(host, sizeof host - 1);
  return std::string(host) + ":" + std::to_string(::getpid());
}

// ---- models and who computes them ----

absl::StatusOr<std::vector<GatewayOptions::ServedBy>> LoadModels(const Flags& flags) {
  std::vector<GatewayOptions::ServedBy> models;
  for (const std::string& flag : flags.models) {
    auto directory = ParseModelFlag(flag);
    if (!directory.ok()) return directory.status();
    directory->chat_template = flags.chat_template;
    directory->max_model_len = flags.max_model_len;
    std::vector<std::string> notes;
    auto model = LoadServedModel(*directory, notes);
    if (!model.ok()) return model.status();
    for (const std::string& note : notes) spdlog::warn("{}", note);
    for (const auto& other : models) {
      if (other.model->name != directory->name) continue;
      return absl::InvalidArgumentError("--model: two models are called " + directory->name);
    }
    models.push_back({.model = *std::move(model)});
  }
  return models;
}

// "[NAME=]ADDRESS" to the model's list.
absl::Status AddScheduler(const std::string& flag, std::vector<GatewayOptions::ServedBy>& models) {
  const size_t equals = flag.find('=');
  const std::string name = equals == std::string::npos ? "" : flag.substr(0, equals);
  const std::string address = equals == std::string::npos ? flag : flag.substr(equals + 1);
  if (address.empty()) return absl::InvalidArgumentError("--scheduler " + flag + ": the address is missing");
  if (name.empty() && models.size() > 1) {
    return absl::InvalidArgumentError("--scheduler " + flag + ": say of which model, NAME=ADDRESS");
  }
  for (auto& served : models) {
    if (!name.empty() && served.model->name != name) continue;
    served.schedulers.push_back(address);
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError("--scheduler " + flag + ": there is no --model " + name);
}

absl::StatusOr<std::vector<GatewayOptions::ServedBy>> ModelsOf(const Flags& flags) {
  auto models = LoadModels(flags);
  if (!models.ok()) return models.status();
  for (const std::string& flag : flags.schedulers) {
    if (const absl::Status status = AddScheduler(flag, *models); !status.ok()) return status;
  }
  for (const auto& served : *models) {
    if (!served.schedulers.empty()) continue;
    return absl::InvalidArgumentError("model " + served.model->name + " has no --scheduler");
  }
  return models;
}

// ---- who may connect ----

absl::Status SetTls(const Flags& flags, GatewayOptions& options) {
  if (flags.tls_certificate.empty() != flags.tls_key.empty()) {
    return absl::InvalidArgumentError("--tls-certificate and --tls-key go together");
  }
  if (flags.tls_certificate.empty()) {
    if (flags.tls_client_ca.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError("--tls-client-ca needs --tls-certificate and --tls-key");
  }
  auto files = CertificateFiles::Open(
      {.certificate = flags.tls_certificate, .key = flags.tls_key, .client_authority = flags.tls_client_ca});
  if (!files.ok()) return files.status();
  options.certificate = *std::move(files);
  return absl::OkStatus();
}

// Without keys everybody who can connect may use everything: then only this machine can.
absl::Status SetAccess(const Flags& flags, GatewayOptions& options) {
  const bool is_local = IsLocalAddress(flags.listen);
  if (flags.keys.empty() && !is_local) {
    return absl::InvalidArgumentError("--listen " + flags.listen +
                                      " is open to other machines, but there are no keys: give --keys FILE (weir keys "
                                      "create makes one), or listen on 127.0.0.1");
  }
  if (!flags.keys.empty()) {
    auto keys = KeyFile::Open(flags.keys);
    if (!keys.ok()) return keys.status();
    options.keys = *std::move(keys);
  }
  options.has_reflection = flags.reflection == "on" || (flags.reflection == "auto" && is_local);
  return SetTls(flags, options);
}

void SayAccess(const Flags& flags, const GatewayOptions& options) {
  if (flags.keys.empty()) {
    spdlog::warn("no --keys: everybody on this machine is the tenant \"local\", and no other machine can connect");
  } else if (options.certificate == nullptr && !IsLocalAddress(flags.listen)) {
    spdlog::warn("no --tls-certificate: keys and texts cross the network unencrypted");
  }
}

absl::StatusOr<GatewayOptions> OptionsOf(const Flags& flags) {
  auto models = ModelsOf(flags);
  if (!models.ok()) return models.status();
  GatewayOptions options;
  options.models = *std::move(models);
  options.build = std::string(config::BuildId());
  options.name = flags.name.empty() ? HostAndProcess() : flags.name;
  options.listen = flags.listen;
  options.max_streams_per_connection = flags.max_streams_per_connection;
  options.text_threads = flags.text_threads > 0
                             ? flags.text_threads
                             : std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / 2);
  options.max_preparing_bytes = int64_t{flags.max_preparing_mb} << 20;
  options.desk = {.max_requests = flags.max_requests,
                  .max_unread_bytes = int64_t{flags.max_unread_kb} << 10,
                  .slow_reader_timeout_us = flags.slow_reader_timeout_ms * 1000};
  options.replicas.replica_timeout_us = flags.replica_timeout_ms * 1000;
  options.replicas.recovery_timeout_us = flags.recovery_timeout_ms * 1000;
  options.replicas.max_replays = flags.max_replays;
  if (const absl::Status status = SetAccess(flags, options); !status.ok()) return status;
  SayAccess(flags, options);
  return options;
}

// ---- the end ----

// Streams end by themselves, or at the deadline, or when the signal comes again.
void Drain(const Flags& flags, GatewayServer& server) {
  spdlog::info("draining: {} requests are to end within {} ms", server.num_requests(), flags.drain_timeout_ms);
  server.StartDrain();
  const TimeUs deadline = NowUs() + flags.drain_timeout_ms * 1000;
  while (server.num_requests() > 0 && NowUs() < deadline && !process::WasAskedToEnd(std::chrono::milliseconds(20))) {
  }
  const int64_t num_left = server.num_requests();
  server.Stop(kCloseMs);
  spdlog::info("drained: {} requests were cut short", num_left);
}

int Run(const Flags& flags) {
  channels::SkipLockChecks();
  process::HoldEndingSignals();
  auto options = OptionsOf(flags);
  if (!options.ok()) return Fail(std::string(options.status().message()));

  const auto registry = std::make_shared<prometheus::Registry>();
  std::string error;
  const auto server = GatewayServer::Start(*std::move(options), registry, error);
  if (server == nullptr) return Fail(error);
  auto ops = metrics::OpsServer::Start({.listen = flags.ops_listen,
                                        .liveness = [&server] { return server->WhyNotAlive(); },
                                        .readiness = [&server] { return server->WhyNotReady(); }},
                                       registry);
  if (!ops.ok()) return Fail(std::string(ops.status().message()));
  spdlog::info("build {}: clients connect at {} (port {}), metrics at port {}", config::BuildId(), flags.listen,
               server->port(), (*ops)->port());
  while (!process::WasAskedToEnd(std::chrono::seconds(1))) {
  }
  Drain(flags, *server);
  return 0;
}

}  // namespace
}  // namespace weir::gateway

int main(int argc, char** argv) {
  CLI::App app(
      "weir-gateway: serves clients: text to tokens, keys, limits, streams; the work goes to schedulers.\n"
      "Example: weir-gateway --model v3=/models/DeepSeek-V3 --scheduler 127.0.0.1:7100 --listen 127.0.0.1:7000");
  weir::gateway::Flags flags;
  weir::gateway::AddFlags(app, flags);
  weir::config::AddConfigOptions(app);
  app.set_version_flag("--version", std::string(weir::config::BuildId()));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return weir::config::Exit(app, error, argc, argv);
  }
  weir::process::StartLog(flags.log, "gateway");
  return weir::gateway::Run(flags);
}
