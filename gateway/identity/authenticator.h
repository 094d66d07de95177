#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "gateway/identity/key_ring.h"

namespace weir::gateway {

// From the `authorization` of a call to who calls.  Thread-safe.
class Authenticator {
 public:
  // Without a keys file everybody is the tenant "local": only this machine may reach the gateway then.
  explicit Authenticator(std::unique_ptr<KeyFile> keys);

  // `authorization`: the value of the call's metadata, "Bearer weir_...".  UNAUTHENTICATED, with one message for every
  // kind of wrong key.
  absl::StatusOr<Identity> Authenticate(std::optional<std::string_view> authorization) const;

  bool has_keys() const { return keys_ != nullptr; }
  // Every second: takes over what changed in the file.
  absl::Status Refresh();

 private:
  const std::unique_ptr<KeyFile> keys_;
  Identity local_;
};

}  // namespace weir::gateway
