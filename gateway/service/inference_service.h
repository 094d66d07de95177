#pragma once

#include <memory>
#include <vector>

#include "channels/live_calls.h"
#include "gateway/identity/authenticator.h"
#include "gateway/serving/front_desk.h"
#include "gateway/serving/served_request.h"

namespace grpc {
class Service;
}

// weir.v1.InferenceService: reads calls, hands them to the front desk, writes frames.

namespace weir::gateway {

// All pointers must outlive it.  `offers` is in the order of the configuration.  `live_calls` counts what is to end
// before the server does.
std::unique_ptr<grpc::Service> NewInferenceService(const std::vector<Offer>* offers, const Authenticator* authenticator,
                                                   FrontDesk* desk, const channels::LiveCalls* live_calls);

}  // namespace weir::gateway
