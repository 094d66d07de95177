#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// What a server shows its clients for TLS, from files that may be renewed while it runs.

namespace weir::gateway {

// PEM texts that have been tried: they can be read, and the key belongs to the certificate.
struct ServerCertificate {
  std::string chain;             // the server's own certificate first
  std::string key;               // of that certificate
  std::string client_authority;  // empty: clients need no certificate
  std::string valid_until;       // of the server's own: "Nov 24 14:00:00 2027 GMT"
  bool has_expired = false;      // at the time it was read
};

// Thread-safe.
class CertificateFiles {
 public:
  struct Paths {
    std::string certificate;
    std::string key;
    std::string client_authority;  // empty: clients need no certificate
  };
  // The files must be there and right, and an error says which is not and what to do.  Later changes that are wrong are
  // reported by Refresh, and what was read before stays in force.
  static absl::StatusOr<std::unique_ptr<CertificateFiles>> Open(Paths paths);

  std::shared_ptr<const ServerCertificate> current() const;
  // Looks whether a file changed since the last call, and reads them.  Meant to be called every second.  True: there is
  // another certificate.
  absl::StatusOr<bool> Refresh();
  bool asks_clients() const { return !paths_.client_authority.empty(); }

 private:
  explicit CertificateFiles(Paths paths) : paths_(std::move(paths)) {}
  const Paths paths_;
  mutable std::mutex mutex_;
  std::shared_ptr<const ServerCertificate> current_;
  std::string seen_;  // sizes, times and inodes of what was read last
};

}  // namespace weir::gateway
