#pragma once

#include <grpcpp/support/status.h>

#include "gateway/request/request_error.h"

// Errors on the wire: a grpc::Status whose trailing metadata `grpc-status-details-bin` holds a google.rpc.Status.
// ErrorInfo (domain "weir") is always in it; BadRequest, QuotaFailure and RetryInfo where they apply.

namespace weir::gateway {

grpc::Status ToStatus(const RequestError& error);

}  // namespace weir::gateway
