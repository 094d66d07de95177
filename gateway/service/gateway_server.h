#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gateway/identity/authenticator.h"
#include "gateway/replica/replica_set.h"
#include "gateway/request/served_model.h"
#include "gateway/service/certificate_files.h"
#include "gateway/serving/front_desk.h"

namespace prometheus {
class Registry;
}

// The whole gateway but its flags: replicas, desk, threads, ports.

namespace weir::gateway {

struct GatewayOptions {
  struct ServedBy {
    std::shared_ptr<const ServedModel> model;
    std::vector<std::string> schedulers;  // addresses
  };
  std::vector<ServedBy> models;
  std::string build;
  std::string name;                               // in the schedulers' logs
  std::string listen = "127.0.0.1:0";             // "host:port" or "unix:/path"
  std::unique_ptr<KeyFile> keys;                  // null: nobody needs a key, and only this machine can connect
  std::unique_ptr<CertificateFiles> certificate;  // null: no TLS
  bool has_reflection = true;
  int32_t max_streams_per_connection = 100;
  int32_t text_threads = 1;
  int64_t max_preparing_bytes = 256 << 20;
  FrontDesk::Options desk;
  ReplicaSet::Options replicas;  // addresses and vocab_size are filled in
};

class GatewayServer {
 public:
  // Null, with the reason in `error`, when it cannot listen.
  static std::unique_ptr<GatewayServer> Start(GatewayOptions options, std::shared_ptr<prometheus::Registry> registry,
                                              std::string& error);
  // Ends everything at once.
  ~GatewayServer();

  int port() const;  // 0 on a unix socket
  // Empty, or for people: why no request can be answered.
  std::string WhyNotReady() const;
  // Empty, or that the gateway's own thread does not move.
  std::string WhyNotAlive() const;

  // Health says not serving, who comes after is refused, streams go on.
  void StartDrain();
  int64_t num_requests() const;
  // Ends what has not ended by itself, and gives it `patience_ms` to tell its clients.
  void Stop(int64_t patience_ms);

 private:
  class Parts;
  explicit GatewayServer(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace weir::gateway
