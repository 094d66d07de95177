#include "scheduler/service/tenant_table.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace weir::scheduler {
namespace {

bool IsName(const std::string& name) {
  return !name.empty() && name.size() <= TenantTable::kMaxNameBytes &&
         std::none_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f || c == '/'; });
}

}  // namespace

TenantTable::TenantTable(Policy policy, int32_t max_tenants) : policy_(std::move(policy)), max_tenants_(max_tenants) {
  Add("", -1);  // kOwn: no gateway can name it
  nodes_[kOwn].sends = true;
}

TenantTable::Found TenantTable::Find(const std::vector<std::string>& path, const std::vector<double>& weights) {
  if (std::string error = FindError(path); !error.empty()) return {.error = std::move(error)};
  Found found;
  std::string name;
  for (size_t depth = 0; depth < path.size(); ++depth) {
    name += (depth == 0 ? "" : "/") + path[depth];
    const auto known = by_name_.find(name);
    const bool is_leaf = depth + 1 == path.size();
    TenantId id = known == by_name_.end() ? -1 : known->second;
    if (id >= 0 && is_leaf && nodes_[id].has_children) {
      return {.has_changed = found.has_changed,
              .error = "tenant_path: \"" + name + "\" has tenants below it; requests come from the leaves of the tree"};
    }
    if (id >= 0 && !is_leaf && nodes_[id].sends) {
      return {.has_changed = found.has_changed,
              .error = "tenant_path: \"" + name + "\" sends requests itself and can have no tenants below it"};
    }
    if (id < 0 && static_cast<int32_t>(nodes_.size()) >= max_tenants_) {
      return {.has_changed = found.has_changed,
              .is_full = true,
              .error = "this replica knows " + std::to_string(max_tenants_) + " tenants already; raise --max-tenants"};
    }
    if (id < 0) {
      id = Add(name, found.id);
      found.has_changed = true;
    }
    const double weight = depth < weights.size() ? weights[depth] : 1.0;
    if (policy_.tenants[id].weight != weight) {
      policy_.tenants[id].weight = weight;
      found.has_changed = true;
    }
    found.id = id;
  }
  nodes_[found.id].sends = true;
  return found;
}

std::string TenantTable::FindError(const std::vector<std::string>& path) const {
  if (path.empty() || path.size() > kMaxDepth) {
    return "tenant_path: has " + std::to_string(path.size()) + " names; 1 to " + std::to_string(kMaxDepth) +
           " are allowed";
  }
  if (!std::all_of(path.begin(), path.end(), IsName)) {
    return "tenant_path: a name has 1 to " + std::to_string(kMaxNameBytes) +
           " bytes without '/' and control characters";
  }
  return "";
}

TenantId TenantTable::Add(std::string name, TenantId parent) {
  const auto id = static_cast<TenantId>(nodes_.size());
  if (parent >= 0) nodes_[parent].has_children = true;
  policy_.tenants.push_back({.parent = parent});
  by_name_.emplace(name, id);
  nodes_.push_back({.name = std::move(name)});
  return id;
}

}  // namespace weir::scheduler
