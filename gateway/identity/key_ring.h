#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gateway/identity/identity.h"

// API keys of a keys file.
//
// A key is weir_<id>_<secret>: 8 hexadecimal digits that name it, and 256 random bits in base64url.  The file holds no
// key, only HMAC-SHA-256(pepper, key).  (A fast hash is right for 256 random bits: there is nothing to guess.)  The
// file is YAML:
//
//   pepper: <64 hex digits>             # keys the hashes
//   namespace_secret: <64 hex digits>   # keys the tenants' cache namespaces
//   tenants:                            # optional; weight 1 where absent
//     guangdong/foshan: {weight: 2}
//   keys:
//     - id: 3f9a01bc
//       hash: <64 hex digits>
//       tenant: guangdong/foshan/online-services
//       highest_priority: standard      # optional: interactive | standard | batch
//       max_concurrent_requests: 32     # optional
//
// Made and changed by `weir keys`; a running gateway sees changes within seconds (KeyFile).

namespace weir::gateway {

// An immutable set of keys; may be used by all threads.
class KeyRing {
 public:
  // INVALID_ARGUMENT names `origin`, the entry and what is wrong.
  static absl::StatusOr<std::shared_ptr<const KeyRing>> Parse(std::string_view yaml, std::string_view origin);

  // UNAUTHENTICATED, with one message for every reason, when the key is not in the ring.  Compares in constant time.
  absl::StatusOr<Identity> Authenticate(std::string_view key) const;

  int32_t size() const { return static_cast<int32_t>(entries_.size()); }
  // The identities, by key id; for listings.
  std::vector<Identity> Identities() const;

 private:
  struct Entry {
    std::array<uint8_t, 32> hash;
    Identity identity;
  };
  std::string pepper_;
  std::map<std::string, Entry, std::less<>> entries_;  // by key id
};

// A keys file on disk, read again when it changes.  Thread-safe.
class KeyFile {
 public:
  // The file must be there and right; later changes that are wrong are reported by Refresh and the last good ring
  // stays.
  static absl::StatusOr<std::unique_ptr<KeyFile>> Open(const std::string& path);

  std::shared_ptr<const KeyRing> ring() const;
  // Looks whether the file changed since the last call, and reads it.  Meant to be called every second.
  absl::Status Refresh();

 private:
  explicit KeyFile(std::string path) : path_(std::move(path)) {}
  const std::string path_;
  mutable std::mutex mutex_;
  std::shared_ptr<const KeyRing> ring_;
  std::string seen_;  // size, time and inode of what was read last
};

// ---- changing a keys file (`weir keys`) ----

struct NewKey {
  std::string tenant;  // "guangdong/foshan/online-services"
  Priority highest_priority = Priority::kInteractive;
  int32_t max_concurrent_requests = 0;
};
// Adds a key to the file, which is made when it is not there (mode 0600), and returns the key's text: it is not kept
// anywhere.
absl::StatusOr<std::string> CreateKey(const std::string& path, const NewKey& key);
// NOT_FOUND when no key has this id.
absl::Status RevokeKey(const std::string& path, std::string_view key_id);

// "a/b/c" to its nodes.  INVALID_ARGUMENT: a node must be 1 to 64 of letters, digits, '-', '_', '.'; at most 8 of them.
absl::StatusOr<std::vector<std::string>> ParseTenantPath(std::string_view path);
absl::StatusOr<Priority> ParsePriority(std::string_view name);
std::string_view Name(Priority priority);

}  // namespace weir::gateway
