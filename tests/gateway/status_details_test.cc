#include "gateway/service/status_details.h"

#include <gtest/gtest.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace weir::gateway {
namespace {

template <typename Detail>
std::optional<Detail> Find(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), static_cast<int>(status.error_code()));
  Detail detail;
  for (const auto& any : details.details()) {
    if (any.UnpackTo(&detail)) return detail;
  }
  return std::nullopt;
}

TEST(StatusDetailsTest, ErrorInfoIsAlwaysThere) {
  RequestError error;
  error.code = RequestError::Code::kNotFound;
  error.reason = "MODEL_NOT_FOUND";
  error.message = "no such model";
  error.metadata = {{"models", "demo"}};
  const grpc::Status status = ToStatus(error);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(), "no such model");
  const auto info = Find<google::rpc::ErrorInfo>(status);
  ASSERT_TRUE(info.has_value());
  EXPECT_EQ(info->reason(), "MODEL_NOT_FOUND");
  EXPECT_EQ(info->domain(), "weir");
  EXPECT_EQ(info->metadata().at("models"), "demo");
  EXPECT_FALSE(Find<google::rpc::RetryInfo>(status).has_value());
  EXPECT_FALSE(Find<google::rpc::BadRequest>(status).has_value());
}

TEST(StatusDetailsTest, FieldsQuotaAndRetryAreCarried) {
  RequestError error;
  error.code = RequestError::Code::kResourceExhausted;
  error.reason = "TENANT_QUOTA";
  error.violations = {{"a[0].b", "is bad"}};
  error.quota = {{"tenant:x", "2 at once"}};
  error.retry_after_ms = 1250;
  const grpc::Status status = ToStatus(error);
  EXPECT_EQ(Find<google::rpc::BadRequest>(status)->field_violations(0).field(), "a[0].b");
  EXPECT_EQ(Find<google::rpc::QuotaFailure>(status)->violations(0).subject(), "tenant:x");
  const auto retry = Find<google::rpc::RetryInfo>(status);
  EXPECT_EQ(retry->retry_delay().seconds(), 1);
  EXPECT_EQ(retry->retry_delay().nanos(), 250000000);
}

}  // namespace
}  // namespace weir::gateway
