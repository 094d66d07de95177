#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

// Who calls.  Made from credentials only, never from what a request says.

namespace weir::gateway {

enum class Priority { kInteractive, kStandard, kBatch };

struct Identity {
  std::string key_id;                                  // names the credential in logs; not secret
  std::vector<std::string> tenant_path;                // root first: {"guangdong", "foshan", "online-services"}
  std::vector<double> tenant_weights;                  // of each node of the path among its siblings
  Priority highest_priority = Priority::kInteractive;  // a request that asks for more gets this
  int32_t max_concurrent_requests = 0;                 // of this key; 0 = no bound of its own
  std::array<uint8_t, 16>
      cache_namespace_key{};  // a secret of the tenant: equal for all its keys, different from others'

  std::string TenantName() const {  // "guangdong/foshan/online-services"
    std::string name;
    for (const std::string& node : tenant_path) name += (name.empty() ? "" : "/") + node;
    return name;
  }
};

}  // namespace weir::gateway
