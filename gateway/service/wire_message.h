#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <optional>

#include "gateway/request/request_error.h"

namespace google::protobuf {
class Message;
}

// Messages from and to the bytes of a call.  gRPC would do the same, but has one status without details for all that it
// cannot parse.

namespace weir::gateway {

// Reads what a call was given, once, and lets go of its bytes; or says what is wrong with them.
std::optional<RequestError> ReadMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message& message);

// In place of what `bytes` hold.
void WriteMessage(const google::protobuf::Message& message, grpc::ByteBuffer& bytes);

}  // namespace weir::gateway
