// weir-gateway: the process that clients talk to.

#include <signal.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "config/build_id.h"
#include "config/config.h"
#include "gateway/models/model_directory.h"

namespace weir::gateway {
namespace {

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
  std::string reflection = "auto";
  std::string name;
  int32_t max_requests = 4096;
  int32_t max_preparing_mb = 256;
  int32_t text_threads = 0;
  int32_t max_unread_kb = 256;
  int64_t slow_reader_timeout_ms = 30000;
  int64_t replica_timeout_ms = 5000;
  int64_t recovery_timeout_ms = 30000;
  int32_t max_replays = 8;
  int64_t drain_timeout_ms = 30000;
  std::string log_format = "text";
  std::string log_level = "info";
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
  app.add_option("--tls-certificate", flags.tls_certificate, "PEM file; with --tls-key, clients connect over TLS");
  app.add_option("--tls-key", flags.tls_key, "PEM file of the certificate's private key");
  app.add_option("--reflection", flags.reflection, "on, off, or auto: on when only this machine may connect")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->capture_default_str();
  app.add_option("--name", flags.name, "names this gateway in the schedulers' logs; default: host and process");

  app.add_option("--max-requests", flags.max_requests, "requests at once, of all tenants")
      ->check(CLI::Range(1, 1'000'000))
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
  app.add_option("--log-format", flags.log_format, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  app.add_option("--log-level", flags.log_level, "debug, info, warn or error")
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
      ->capture_default_str();
}

// The message as the inside of a JSON string.
class JsonMessage final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& out) override {
    for (const char c : message.payload) {
      const std::string escaped = Escape(c);
      out.append(escaped.data(), escaped.data() + escaped.size());
    }
  }
  std::unique_ptr<spdlog::custom_flag_formatter> clone() const override { return std::make_unique<JsonMessage>(); }

 private:
  static std::string Escape(char c) {
    if (c == '"' || c == '\\') return {'\\', c};
    if (static_cast<unsigned char>(c) >= 0x20) return {c};
    char code[8];
    std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(static_cast<unsigned char>(c)));
    return code;
  }
};

void SetLog(const Flags& flags) {
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<JsonMessage>('*');
  formatter->set_pattern(flags.log_format == "json"
                             ? R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l","process":"gateway","message":"%*"})"
                             : "%Y-%m-%d %H:%M:%S.%e %L gateway: %v");
  spdlog::set_formatter(std::move(formatter));
  spdlog::set_level(spdlog::level::from_str(flags.log_level));
  spdlog::flush_on(spdlog::level::info);
}

int Fail(const std::string& error) {
  spdlog::error("{}", error);
  return 1;
}

int Run(const Flags&) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // before any thread begins: only this one waits for them
  return Fail("serving is not built into this program");
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
    return app.exit(error) == 0 ? 0 : 2;
  }
  weir::gateway::SetLog(flags);
  return weir::gateway::Run(flags);
}
