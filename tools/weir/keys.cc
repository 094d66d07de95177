// weir keys: API keys of a gateway's keys file.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "config/config.h"
#include "gateway/identity/key_ring.h"
#include "tools/weir/commands.h"

namespace weir::tools {
namespace {

using gateway::Identity;

constexpr const char* kExamples =
    "Examples:\n"
    "  weir keys create --file keys.yaml --tenant guangdong/foshan/online-services > key\n"
    "  weir keys list --file keys.yaml\n"
    "  weir keys revoke --file keys.yaml 3f9a01bc\n"
    "A running gateway sees changes within seconds.";

struct KeysOptions {
  std::string file = "keys.yaml";
  std::string tenant;
  std::string highest_priority = "interactive";
  int32_t max_concurrent_requests = 0;
  std::string key_id;
  bool prints_json = false;
};

absl::Status Create(const KeysOptions& options) {
  const auto priority = gateway::ParsePriority(options.highest_priority);
  if (!priority.ok()) return priority.status();
  const absl::StatusOr<std::string> key =
      gateway::CreateKey(options.file, {.tenant = options.tenant,
                                        .highest_priority = *priority,
                                        .max_concurrent_requests = options.max_concurrent_requests});
  if (!key.ok()) return key.status();
  // The key alone on standard output, so that it can go into a file.
  std::fprintf(stderr, "A key of %s, kept nowhere else.  Clients send it as `authorization: Bearer KEY`.\n",
               options.tenant.c_str());
  std::printf("%s\n", key->c_str());
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Identity>> ReadIdentities(const std::string& path) {
  const auto file = gateway::KeyFile::Open(path);
  if (!file.ok()) return file.status();
  return (*file)->ring()->Identities();
}

absl::Status List(const KeysOptions& options) {
  const auto identities = ReadIdentities(options.file);
  if (!identities.ok()) return identities.status();
  nlohmann::json list = nlohmann::json::array();
  if (!options.prints_json) std::printf("%-8s  %-40s  %-11s  %s\n", "id", "tenant", "priority", "concurrent requests");
  for (const Identity& identity : *identities) {
    const std::string priority(gateway::Name(identity.highest_priority));
    list.push_back({{"id", identity.key_id},
                    {"tenant", identity.TenantName()},
                    {"weights", identity.tenant_weights},
                    {"highest_priority", priority},
                    {"max_concurrent_requests", identity.max_concurrent_requests}});
    if (options.prints_json) continue;
    const std::string bound =
        identity.max_concurrent_requests > 0 ? absl::StrCat(identity.max_concurrent_requests) : "any number";
    std::printf("%-8s  %-40s  %-11s  %s\n", identity.key_id.c_str(), identity.TenantName().c_str(), priority.c_str(),
                bound.c_str());
  }
  if (options.prints_json) std::printf("%s\n", list.dump(2).c_str());
  return absl::OkStatus();
}

absl::Status Revoke(const KeysOptions& options) {
  absl::Status status = gateway::RevokeKey(options.file, options.key_id);
  if (status.ok()) std::printf("revoked %s\n", options.key_id.c_str());
  if (!absl::IsNotFound(status)) return status;
  const auto identities = ReadIdentities(options.file);
  if (!identities.ok()) return identities.status();
  std::vector<std::string> ids;
  for (const Identity& identity : *identities) ids.push_back(identity.key_id);
  const std::string nearest = config::Nearest(options.key_id, ids);
  return absl::NotFoundError(absl::StrCat(std::string(status.message()),
                                          nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?")));
}

CLI::App* AddAction(CLI::App& keys, const std::string& name, const std::string& description,
                    const std::shared_ptr<KeysOptions>& options, absl::Status (*action)(const KeysOptions&)) {
  CLI::App* command = keys.add_subcommand(name, description);
  command->add_option("--file", options->file, "the keys file, as the gateway's --keys names it")
      ->capture_default_str();
  command->callback([options, action, name] {
    const absl::Status status = action(*options);
    if (status.ok()) return;
    std::fprintf(stderr, "weir keys %s: %s\n", name.c_str(), std::string(status.message()).c_str());
    throw CLI::RuntimeError(1);
  });
  return command;
}

}  // namespace

void AddKeys(CLI::App& app) {
  auto options = std::make_shared<KeysOptions>();
  CLI::App* keys = app.add_subcommand("keys", "Make, list and revoke API keys");
  keys->require_subcommand(1);
  keys->footer(kExamples);
  CLI::App* create = AddAction(*keys, "create", "Make a key, and the file when it is not there", options, &Create);
  create->add_option("--tenant", options->tenant, "whose key: a path such as guangdong/foshan/online-services")
      ->required();
  create->add_option("--highest-priority", options->highest_priority, "requests that ask for more get this")
      ->check(CLI::IsMember({"interactive", "standard", "batch"}))
      ->capture_default_str();
  create->add_option("--max-concurrent-requests", options->max_concurrent_requests, "of this key; 0 = any number")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  create->footer("Example: weir keys create --tenant guangdong/foshan > key");
  CLI::App* list = AddAction(*keys, "list", "Whose keys there are; never the keys", options, &List);
  list->add_flag("--json", options->prints_json, "print a JSON list");
  list->footer("Example: weir keys list --file keys.yaml");
  CLI::App* revoke = AddAction(*keys, "revoke", "Take a key away", options, &Revoke);
  revoke->add_option("id", options->key_id, "the key's id: the 8 digits behind weir_")->required();
  revoke->footer("Example: weir keys revoke 3f9a01bc");
}

}  // namespace weir::tools
