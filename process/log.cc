#include "process/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <utility>

namespace weir::process {
namespace {

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

}  // namespace

void AddLogOptions(CLI::App& app, LogOptions& options) {
  app.add_option("--log-format", options.format, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  app.add_option("--log-level", options.level, "debug, info, warn or error")
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
      ->capture_default_str();
}

void StartLog(const LogOptions& options, const std::string& name) {
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<JsonMessage>('*');
  formatter->set_pattern(options.format == "json" ? R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l","process":")" +
                                                        name + R"(","message":"%*"})"
                                                  : "%Y-%m-%d %H:%M:%S.%e %L " + name + ": %v");
  spdlog::set_formatter(std::move(formatter));
  spdlog::set_level(spdlog::level::from_str(options.level));
  spdlog::flush_on(spdlog::level::info);
}

}  // namespace weir::process
