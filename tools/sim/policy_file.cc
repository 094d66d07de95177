#include "tools/sim/policy_file.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <iterator>
#include <numeric>
#include <utility>

#include "absl/strings/str_format.h"

namespace weir::sim {
namespace {

// One key of the file: where it lives, its value, its bounds and what it means.
struct Key {
  const char* name;
  std::function<double(const PolicyFile&)> get;
  std::function<void(PolicyFile&, double)> set;
  double low;
  double high;
  bool is_integer;
  const char* meaning;
};

scheduler::Limits& LimitsOf(PolicyFile& file) { return file.limits; }
scheduler::Policy& PolicyOf(PolicyFile& file) { return file.policy; }
scheduler::StepCost& StepCostOf(PolicyFile& file) { return file.policy.step_cost; }
PolicyFile& Whole(PolicyFile& file) { return file; }

template <typename Field>
Key MakeKey(const char* name, Field field, double low, double high, const char* meaning) {
  using Value = std::remove_reference_t<decltype(field(std::declval<PolicyFile&>()))>;
  return {name,
          [field](const PolicyFile& file) {
            PolicyFile copy = file;
            return static_cast<double>(field(copy));
          },
          [field](PolicyFile& file, double value) { field(file) = static_cast<Value>(value); },
          low,
          high,
          std::is_integral_v<Value>,
          meaning};
}

template <typename Part, typename Value>
Key MakeKey(const char* name, Part& (*part)(PolicyFile&), Value Part::* member, double low, double high,
            const char* meaning) {
  return MakeKey(name, [part, member](PolicyFile& file) -> Value& { return part(file).*member; }, low, high, meaning);
}

constexpr double kMany = 1e9;

const std::vector<Key>& GroupKeys() {
  static const auto& keys = *new std::vector<Key>{
      MakeKey("num_dp_groups", Whole, &PolicyFile::num_dp_groups, 1, 1024,
              "data-parallel groups, each with its own cache"),
      MakeKey("blocks_per_dp_group", Whole, &PolicyFile::blocks_per_dp_group, 1, kMany, "cache of a group, in blocks"),
      MakeKey("cost_per_prompt_token", PolicyOf, &scheduler::Policy::cost_per_prompt_token, 0, kMany,
              "what a tenant pays for a prompt token computed"),
      MakeKey("cost_per_generated_token", PolicyOf, &scheduler::Policy::cost_per_generated_token, 0, kMany,
              "... for a generated token"),
      MakeKey("cost_per_context_token", PolicyOf, &scheduler::Policy::cost_per_context_token, 0, kMany,
              "... for a token that a row attends to"),
      MakeKey("max_prompt_tokens_while_decoding", PolicyOf, &scheduler::Policy::max_prompt_tokens_while_decoding, 1,
              kMany, "prompt tokens of a step in which others decode"),
      MakeKey("max_preemptions", PolicyOf, &scheduler::Policy::max_preemptions, 0, 1000,
              "of one request; then it is pinned"),
      MakeKey("max_worker_losses", PolicyOf, &scheduler::Policy::max_worker_losses, 1, 1000,
              "a request in flight at so many is quarantined"),
  };
  return keys;
}

const std::vector<Key>& LimitKeys() {
  static const auto& keys = *new std::vector<Key>{
      MakeKey("block_size", LimitsOf, &scheduler::Limits::block_size, 1, 65536, "tokens"),
      MakeKey("max_num_seqs", LimitsOf, &scheduler::Limits::max_num_seqs, 1, 65536, "running at once, in a group"),
      MakeKey("max_num_batched_tokens", LimitsOf, &scheduler::Limits::max_num_batched_tokens, 1, 1 << 24,
              "of one step, in a group; at least max_num_seqs"),
      MakeKey("max_model_len", LimitsOf, &scheduler::Limits::max_model_len, 1, 1 << 24,
              "prompt and output of one request"),
      MakeKey("max_steps_in_flight", LimitsOf, &scheduler::Limits::max_steps_in_flight, 1, 16,
              "2: the next step is planned while one runs"),
      MakeKey("max_num_waiting", LimitsOf, &scheduler::Limits::max_num_waiting, 1, kMany, "requests, all tenants"),
      MakeKey("max_waiting_tokens", LimitsOf, &scheduler::Limits::max_waiting_tokens, 1, 1e15,
              "prompt tokens, all tenants"),
  };
  return keys;
}

const std::vector<Key>& CostKeys() {
  static const auto& keys = *new std::vector<Key>{
      MakeKey("fixed_us", StepCostOf, &scheduler::StepCost::fixed_us, 0, kMany, "a step's time: this"),
      MakeKey("us_per_prompt_token", StepCostOf, &scheduler::StepCost::us_per_prompt_token, 0, kMany,
              "... and for each prompt token"),
      MakeKey("us_per_generated_token", StepCostOf, &scheduler::StepCost::us_per_generated_token, 0, kMany,
              "... for each generated token"),
      MakeKey("us_per_context_token", StepCostOf, &scheduler::StepCost::us_per_context_token, 0, kMany,
              "... for each cached token that a row attends to"),
  };
  return keys;
}

const std::vector<Key>& ShareKeys() {
  static const auto& keys = *new std::vector<Key>{
      MakeKey(
          "interactive", [](PolicyFile& file) -> auto& { return file.policy.min_class_share[0]; }, 0, 1,
          "always goes first"),
      MakeKey(
          "standard", [](PolicyFile& file) -> auto& { return file.policy.min_class_share[1]; }, 0, 1,
          "part of its tenant's service that it gets while it waits"),
      MakeKey(
          "batch", [](PolicyFile& file) -> auto& { return file.policy.min_class_share[2]; }, 0, 1, "the same"),
  };
  return keys;
}

struct Section {
  const char* name;
  const std::vector<Key>& (*keys)();
};
constexpr Section kSections[] = {{"limits", LimitKeys}, {"min_class_share", ShareKeys}, {"step_cost", CostKeys}};
constexpr const char* kTenantKeys[] = {"name", "parent", "weight", "max_num_waiting", "kv_floor_blocks"};

size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, replaced}));
    }
  }
  return row[b.size()];
}

absl::Status UnknownKey(const std::string& where, const std::string& key, const std::vector<std::string>& known) {
  const auto nearest = std::min_element(known.begin(), known.end(), [&](const auto& a, const auto& b) {
    return EditDistance(key, a) < EditDistance(key, b);
  });
  return absl::InvalidArgumentError(
      absl::StrFormat("%s%s is not a known key; did you mean '%s'?", where, key, *nearest));
}

absl::Status Expected(const std::string& where, const std::string& what, const YAML::Node& found) {
  return absl::InvalidArgumentError(absl::StrFormat(
      "%s must be %s%s", where, what, found.IsScalar() ? ", not '" + found.Scalar().substr(0, 40) + "'" : ""));
}

absl::StatusOr<double> ReadNumber(const std::string& where, const YAML::Node& node, double low, double high,
                                  bool is_integer) {
  double value = 0;
  const bool is_number = node.IsScalar() && YAML::convert<double>::decode(node, value);
  const bool is_in_range = is_number && value >= low && value <= high;
  if (!is_in_range || (is_integer && value != static_cast<double>(static_cast<int64_t>(value)))) {
    return Expected(where, absl::StrFormat("%s from %g to %g", is_integer ? "an integer" : "a number", low, high),
                    node);
  }
  return value;
}

absl::Status ReadKey(const Key& key, const std::string& where, const YAML::Node& node, PolicyFile& file) {
  const auto value = ReadNumber(where + key.name, node, key.low, key.high, key.is_integer);
  if (!value.ok()) return value.status();
  key.set(file, *value);
  return absl::OkStatus();
}

absl::Status ReadSection(const Section& section, const YAML::Node& node, PolicyFile& file) {
  if (!node.IsMap()) return Expected(section.name, "a map of keys to numbers", node);
  const std::string where = std::string(section.name) + ".";
  for (const auto& entry : node) {
    if (!entry.first.IsScalar()) return Expected(where + "...", "keyed by names", entry.first);
    const std::string& name = entry.first.Scalar();
    const auto key =
        std::find_if(section.keys().begin(), section.keys().end(), [&](const Key& k) { return name == k.name; });
    if (key == section.keys().end()) {
      std::vector<std::string> known;
      for (const Key& k : section.keys()) known.emplace_back(k.name);
      return UnknownKey(where, name, known);
    }
    if (absl::Status status = ReadKey(*key, where, entry.second, file); !status.ok()) return status;
  }
  return absl::OkStatus();
}

bool IsName(const std::string& text) {
  constexpr std::string_view kAllowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/";
  return !text.empty() && text.size() <= 200 && text.find_first_not_of(kAllowed) == std::string::npos;
}

absl::Status ReadTenantKey(const std::string& where, const std::string& name, const YAML::Node& node,
                           PolicyFile& file) {
  scheduler::TenantPolicy& tenant = file.policy.tenants.back();
  if (name == "name" || name == "parent") {
    if (!node.IsScalar() || !IsName(node.Scalar())) {
      return Expected(where + name, "a name of letters, digits, '.', '_', '-' and '/'", node);
    }
    const auto earlier_end = file.tenant_names.end() - 1;
    const auto found = std::find(file.tenant_names.begin(), earlier_end, node.Scalar());
    if (name == "name") {
      if (found != earlier_end) return absl::InvalidArgumentError(where + "name '" + node.Scalar() + "' is used twice");
      file.tenant_names.back() = node.Scalar();
    } else if (found == earlier_end) {
      return absl::InvalidArgumentError(where + "parent '" + node.Scalar() + "' is not a tenant above it in the list");
    } else {
      tenant.parent = static_cast<scheduler::TenantId>(found - file.tenant_names.begin());
    }
    return absl::OkStatus();
  }
  const bool is_weight = name == "weight";
  const auto value = ReadNumber(where + name, node, is_weight ? 1e-6 : 0, kMany, !is_weight);
  if (!value.ok()) return value.status();
  if (is_weight) tenant.weight = *value;
  if (name == "max_num_waiting") tenant.max_num_waiting = static_cast<int32_t>(*value);
  if (name == "kv_floor_blocks") tenant.kv_floor_blocks = static_cast<int64_t>(*value);
  return absl::OkStatus();
}

absl::Status ReadTenants(const YAML::Node& node, PolicyFile& file) {
  if (!node.IsSequence() || node.size() == 0) return Expected("tenants", "a list of tenants, at least one", node);
  file.policy.tenants.clear();
  file.tenant_names.clear();
  for (const YAML::Node& entry : node) {
    const std::string where = absl::StrFormat("tenants[%d].", file.tenant_names.size());
    if (!entry.IsMap())
      return Expected(where.substr(0, where.size() - 1), "a map like {name: north, weight: 2}", entry);
    file.policy.tenants.emplace_back();
    file.tenant_names.emplace_back();
    for (const auto& field : entry) {
      if (!field.first.IsScalar()) return Expected(where + "...", "keyed by names", field.first);
      const std::string& name = field.first.Scalar();
      if (std::find(std::begin(kTenantKeys), std::end(kTenantKeys), name) == std::end(kTenantKeys)) {
        return UnknownKey(where, name, {std::begin(kTenantKeys), std::end(kTenantKeys)});
      }
      if (absl::Status status = ReadTenantKey(where, name, field.second, file); !status.ok()) return status;
    }
    if (file.tenant_names.back().empty()) return absl::InvalidArgumentError(where + "name is missing");
  }
  return absl::OkStatus();
}

absl::Status ReadTopLevel(const std::string& name, const YAML::Node& node, PolicyFile& file) {
  if (name == "tenants") return ReadTenants(node, file);
  for (const Section& section : kSections) {
    if (name == section.name) return ReadSection(section, node, file);
  }
  std::vector<std::string> known = {"tenants"};
  for (const Section& section : kSections) known.emplace_back(section.name);
  for (const Key& key : GroupKeys()) {
    if (name == key.name) return ReadKey(key, "", node, file);
    known.emplace_back(key.name);
  }
  return UnknownKey("", name, known);
}

absl::Status CheckTogether(const PolicyFile& file) {
  const scheduler::Limits& limits = file.limits;
  if (limits.max_num_batched_tokens < limits.max_num_seqs) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "limits.max_num_batched_tokens (%d) must be at least limits.max_num_seqs (%d): each decodes a token a step",
        limits.max_num_batched_tokens, limits.max_num_seqs));
  }
  const auto& shares = file.policy.min_class_share;
  if (shares[0] + shares[1] + shares[2] > 1)
    return absl::InvalidArgumentError("min_class_share adds up to more than 1");
  return absl::OkStatus();
}

void PrintKeys(const std::vector<Key>& keys, const PolicyFile& file, const char* indent, std::string& text) {
  for (const Key& key : keys) {
    const std::string entry = absl::StrFormat("%s%s: %.15g", indent, key.name, key.get(file));
    absl::StrAppendFormat(&text, "%-44s # %s\n", entry, key.meaning);
  }
}

}  // namespace

std::vector<scheduler::TenantId> PolicyFile::leaves() const {
  std::vector<bool> has_children(policy.tenants.size(), false);
  for (const scheduler::TenantPolicy& tenant : policy.tenants) {
    if (tenant.parent >= 0) has_children[static_cast<size_t>(tenant.parent)] = true;
  }
  std::vector<scheduler::TenantId> leaves;
  for (size_t i = 0; i < has_children.size(); ++i) {
    if (!has_children[i]) leaves.push_back(static_cast<scheduler::TenantId>(i));
  }
  return leaves;
}

PolicyFile DefaultPolicyFile() {
  PolicyFile file;
  for (int i = 1; i <= 20; ++i) {
    file.policy.tenants.emplace_back();
    file.tenant_names.push_back(absl::StrFormat("city%02d", i));
  }
  return file;
}

absl::StatusOr<PolicyFile> ParsePolicyFile(const std::string& text) {
  PolicyFile file = DefaultPolicyFile();
  YAML::Node root;
  try {  // yaml-cpp speaks in exceptions; they end here
    root = YAML::Load(text);
    if (root.IsNull()) return file;
    if (!root.IsMap()) return absl::InvalidArgumentError("the file must be a map of keys to values");
    for (const auto& entry : root) {
      if (!entry.first.IsScalar()) return absl::InvalidArgumentError("the file's keys must be names");
      absl::Status status = ReadTopLevel(entry.first.Scalar(), entry.second, file);
      if (!status.ok()) {
        return absl::Status(status.code(),
                            absl::StrFormat("line %d: %s", entry.first.Mark().line + 1, std::string(status.message())));
      }
    }
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrFormat("not valid YAML: %s", error.what()));
  }
  if (absl::Status status = CheckTogether(file); !status.ok()) return status;
  return file;
}

absl::StatusOr<PolicyFile> ReadPolicyFile(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return absl::NotFoundError(absl::StrFormat("%s cannot be opened for reading", path));
  const std::string text((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  auto file = ParsePolicyFile(text);
  if (file.ok()) return file;
  return absl::Status(file.status().code(), path + ": " + std::string(file.status().message()));
}

std::string PrintPolicyFile(const PolicyFile& file) {
  std::string text;
  PrintKeys(GroupKeys(), file, "", text);
  for (const Section& section : kSections) {
    text += std::string(section.name) + ":\n";
    PrintKeys(section.keys(), file, "  ", text);
  }
  text += "tenants:  # a parent stands above its children; weight: share among siblings\n";
  for (size_t i = 0; i < file.tenant_names.size(); ++i) {
    const scheduler::TenantPolicy& tenant = file.policy.tenants[i];
    absl::StrAppendFormat(
        &text, "  - {name: %s, %sweight: %.15g, max_num_waiting: %d, kv_floor_blocks: %d}\n", file.tenant_names[i],
        tenant.parent < 0 ? "" : "parent: " + file.tenant_names[static_cast<size_t>(tenant.parent)] + ", ",
        tenant.weight, tenant.max_num_waiting, tenant.kv_floor_blocks);
  }
  return text;
}

}  // namespace weir::sim
