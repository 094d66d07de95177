#include "gateway/identity/authenticator.h"

#include <openssl/rand.h>

#include <cctype>
#include <cstdlib>

#include "absl/status/status.h"

namespace weir::gateway {
namespace {

constexpr std::string_view kScheme = "bearer ";

// What follows "Bearer", in any case of letters; nothing for another scheme.
std::optional<std::string_view> BearerToken(std::string_view authorization) {
  if (authorization.size() < kScheme.size()) return std::nullopt;
  for (size_t i = 0; i < kScheme.size(); ++i) {
    if (std::tolower(static_cast<unsigned char>(authorization[i])) != kScheme[i]) return std::nullopt;
  }
  authorization.remove_prefix(kScheme.size());
  while (authorization.starts_with(' ')) authorization.remove_prefix(1);
  return authorization;
}

}  // namespace

Authenticator::Authenticator(std::unique_ptr<KeyFile> keys) : keys_(std::move(keys)) {
  local_.key_id = "local";
  local_.tenant_path = {"local"};
  local_.tenant_weights = {1.0};
  auto& secret = local_.cache_namespace_key;
  if (RAND_bytes(secret.data(), static_cast<int>(secret.size())) != 1) std::abort();
}

absl::StatusOr<Identity> Authenticator::Authenticate(std::optional<std::string_view> authorization) const {
  if (keys_ == nullptr) return local_;
  if (!authorization.has_value()) {
    return absl::UnauthenticatedError("an API key is needed: send the metadata `authorization: Bearer weir_...`");
  }
  return keys_->ring()->Authenticate(BearerToken(*authorization).value_or(""));
}

absl::Status Authenticator::Refresh() { return keys_ == nullptr ? absl::OkStatus() : keys_->Refresh(); }

}  // namespace weir::gateway
