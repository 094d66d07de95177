#pragma once

#include <grpcpp/server_context.h>

#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "gateway/clock.h"
#include "gateway/identity/authenticator.h"
#include "gateway/request/request_error.h"

// What a call's metadata say of who calls and by when.

namespace weir::gateway {

// The one value of a key; nothing when it is absent.  Of several, the first.
std::optional<std::string_view> Metadata(const grpc::CallbackServerContext& context, const char* key);

// As HTTP/2 counts them: 32 bytes for each, besides its name and value.
int64_t MetadataBytes(const grpc::CallbackServerContext& context);

std::variant<Identity, RequestError> IdentityOf(const grpc::CallbackServerContext& context,
                                                const Authenticator& authenticator);

// The call's deadline on the steady clock, a little earlier, so that the last frame reaches a client before its own
// deadline ends the call.
std::optional<TimeUs> DeadlineOf(const grpc::CallbackServerContext& context, TimeUs now);

// A W3C traceparent, when it is well-formed.
std::string TraceparentOf(const grpc::CallbackServerContext& context);

}  // namespace weir::gateway
