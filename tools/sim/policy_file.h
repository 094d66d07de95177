#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "scheduler/core/policy.h"

// A policy as an operator writes it: YAML with the names of scheduler/core/policy.h.

namespace weir::sim {

struct PolicyFile {
  scheduler::Limits limits;
  scheduler::Policy policy;
  int32_t num_dp_groups = 1;
  int32_t blocks_per_dp_group = 4096;
  std::vector<std::string> tenant_names;  // by TenantId

  // Tenants without children: those that send requests.
  std::vector<scheduler::TenantId> leaves() const;
};

// Twenty cities of equal weight and the core's defaults.
PolicyFile DefaultPolicyFile();

// What the file does not say stays at its default; a list of tenants replaces the twenty cities.  Errors name the key,
// say what is wrong and, for an unknown key, which known one is nearest.
absl::StatusOr<PolicyFile> ParsePolicyFile(const std::string& text);
absl::StatusOr<PolicyFile> ReadPolicyFile(const std::string& path);

// The file as text that ParsePolicyFile reads, with a comment on every key.
std::string PrintPolicyFile(const PolicyFile& file);

}  // namespace weir::sim
