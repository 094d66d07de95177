#pragma once

#include <optional>

#include "gateway/request/request_error.h"
#include "gateway/request/served_model.h"

namespace weir::v1 {
class DetokenizeRequest;
class DetokenizeResponse;
class TokenizeRequest;
class TokenizeResponse;
}  // namespace weir::v1

// Requests that need no replica.  Errors as PrepareChat's.

namespace weir::gateway {

std::optional<RequestError> TokenizeInput(const v1::TokenizeRequest& request, const ServedModel& model,
                                          v1::TokenizeResponse& response);
std::optional<RequestError> DetokenizeIds(const v1::DetokenizeRequest& request, const ServedModel& model,
                                          v1::DetokenizeResponse& response);

}  // namespace weir::gateway
