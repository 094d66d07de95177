#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include "gateway/serving/gateway_metrics.h"
#include "gateway/serving/served_request.h"
#include "gateway/serving/text_pool.h"

// Lets requests in: counts them, keeps the bounds, knows the ids in use.  Thread-safe.

namespace weir::gateway {

class FrontDesk {
 public:
  struct Options {
    int64_t max_requests = 4096;
    int64_t max_unread_bytes = 256 << 10;
    TimeUs slow_reader_timeout_us = 30'000'000;
  };
  // Pool and metrics must outlive it.
  FrontDesk(Options options, TextPool* pool, GatewayMetrics* metrics);

  // Takes the request on, or has its port finished with the reason.
  std::shared_ptr<ServedRequest> Open(Arrival arrival, FramePort* port);
  // Work on texts without a stream.  False: too much waits.
  bool PostText(const Identity& identity, int64_t bytes, std::function<void()> job);

  // Everybody who comes after is refused.
  void StartDrain();
  bool is_draining() const;
  // Ends what has not ended by itself.
  void StopShort();
  void OnTime(TimeUs now);
  int64_t num_requests() const;

  // ---- for ServedRequest ----
  const Options& options() const { return options_; }
  GatewayMetrics& metrics() { return *metrics_; }
  // False: a request of the tenant has this id.
  bool ClaimId(const std::string& tenant, const std::string& request_id);
  void Release(const std::shared_ptr<ServedRequest>& request, const std::string& tenant, const std::string& request_id);

 private:
  std::optional<RequestError> Admit(const std::shared_ptr<ServedRequest>& request);
  std::vector<std::shared_ptr<ServedRequest>> Live() const;

  const Options options_;
  TextPool* const pool_;
  GatewayMetrics* const metrics_;

  mutable std::mutex mutex_;
  bool is_draining_ = false;
  std::unordered_map<const ServedRequest*, std::shared_ptr<ServedRequest>> live_;
  std::unordered_map<std::string, int32_t> num_by_key_;
  std::map<std::pair<std::string, std::string>, bool> ids_;  // (tenant, request id)
};

}  // namespace weir::gateway
