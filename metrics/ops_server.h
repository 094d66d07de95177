#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace prometheus {
class Registry;
}

// The ops port of a process: plain HTTP/1.1 for Prometheus, kubelets and people.  GET /metrics, /healthz, /readyz;
// anything else is 404.  One thread of its own; a slow or silent client is dropped after 10 s and hinders nobody; at
// most 64 connections.

namespace weir::metrics {

class OpsServer {
 public:
  struct Options {
    std::string listen = "127.0.0.1:0";  // host:port; port 0 = any free one
    // Empty = fine; otherwise why not, for people.  Called on the server's thread: must not block.
    std::function<std::string()> liveness;   // this process's own loop moves
    std::function<std::string()> readiness;  // it can serve
  };
  // UNAVAILABLE with the address when it cannot listen.
  static absl::StatusOr<std::unique_ptr<OpsServer>> Start(const Options& options,
                                                          std::shared_ptr<prometheus::Registry> registry);
  ~OpsServer();  // stops at once

  int port() const;

 private:
  class Loop;
  explicit OpsServer(std::unique_ptr<Loop> loop);
  std::unique_ptr<Loop> loop_;
};

}  // namespace weir::metrics
