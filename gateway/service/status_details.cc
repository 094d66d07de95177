#include "gateway/service/status_details.h"

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace weir::gateway {
namespace {

grpc::StatusCode CodeOf(RequestError::Code code) {
  switch (code) {
    case RequestError::Code::kInvalidArgument:
      return grpc::StatusCode::INVALID_ARGUMENT;
    case RequestError::Code::kFailedPrecondition:
      return grpc::StatusCode::FAILED_PRECONDITION;
    case RequestError::Code::kNotFound:
      return grpc::StatusCode::NOT_FOUND;
    case RequestError::Code::kAlreadyExists:
      return grpc::StatusCode::ALREADY_EXISTS;
    case RequestError::Code::kUnauthenticated:
      return grpc::StatusCode::UNAUTHENTICATED;
    case RequestError::Code::kResourceExhausted:
      return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case RequestError::Code::kUnavailable:
      return grpc::StatusCode::UNAVAILABLE;
    case RequestError::Code::kDeadlineExceeded:
      return grpc::StatusCode::DEADLINE_EXCEEDED;
    case RequestError::Code::kCancelled:
      return grpc::StatusCode::CANCELLED;
    case RequestError::Code::kInternal:
      return grpc::StatusCode::INTERNAL;
  }
  return grpc::StatusCode::INTERNAL;
}

void AddErrorInfo(const RequestError& error, google::rpc::Status& status) {
  google::rpc::ErrorInfo info;
  info.set_reason(error.reason);
  info.set_domain("weir");
  for (const auto& [key, value] : error.metadata) (*info.mutable_metadata())[key] = value;
  status.add_details()->PackFrom(info);
}

void AddBadRequest(const RequestError& error, google::rpc::Status& status) {
  if (error.violations.empty()) return;
  google::rpc::BadRequest bad;
  for (const auto& violation : error.violations) {
    auto* field = bad.add_field_violations();
    field->set_field(violation.field);
    field->set_description(violation.description);
  }
  status.add_details()->PackFrom(bad);
}

void AddQuotaFailure(const RequestError& error, google::rpc::Status& status) {
  if (error.quota.empty()) return;
  google::rpc::QuotaFailure failure;
  for (const auto& quota : error.quota) {
    auto* violation = failure.add_violations();
    violation->set_subject(quota.subject);
    violation->set_description(quota.description);
  }
  status.add_details()->PackFrom(failure);
}

void AddRetryInfo(const RequestError& error, google::rpc::Status& status) {
  if (!error.retry_after_ms.has_value()) return;
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(*error.retry_after_ms / 1000);
  retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(*error.retry_after_ms % 1000 * 1000000));
  status.add_details()->PackFrom(retry);
}

}  // namespace

grpc::Status ToStatus(const RequestError& error) {
  google::rpc::Status status;
  status.set_code(CodeOf(error.code));
  status.set_message(error.message);
  AddErrorInfo(error, status);
  AddBadRequest(error, status);
  AddQuotaFailure(error, status);
  AddRetryInfo(error, status);
  return grpc::Status(CodeOf(error.code), error.message, status.SerializeAsString());
}

}  // namespace weir::gateway
