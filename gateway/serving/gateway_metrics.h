#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "gateway/answer/frames.h"
#include "gateway/replica/replica_set.h"
#include "gateway/request/request_error.h"

namespace prometheus {
class Registry;
}

// The series whose subject is a gateway.  Labels are bounded: a tenant beyond the thousandth counts as "other"; no id
// and no text of a request ever becomes one.  Thread-safe.

namespace weir::gateway {

enum class Api { kChat, kGenerate };
const char* Name(Api api);

class GatewayMetrics {
 public:
  static constexpr size_t kMaxTenantLabels = 1000;

  GatewayMetrics(std::shared_ptr<prometheus::Registry> registry, const std::string& build, int64_t max_requests,
                 int64_t max_preparing_bytes);
  ~GatewayMetrics();

  void RequestRefused(const std::string& tenant, Api api, const RequestError& error);
  void RequestFinished(const std::string& tenant, Api api, const FinishedFrame& finished);
  void FirstToken(int64_t after_us);
  void BetweenTokens(int64_t us, size_t num_tokens);
  void SlowReaderCutOff();
  void SetInflight(int64_t num_requests, int64_t preparing_bytes);
  void SetReplicas(const std::string& model, const ReplicaSet::View& view);

 private:
  struct Series;
  const std::unique_ptr<Series> series_;
};

}  // namespace weir::gateway
