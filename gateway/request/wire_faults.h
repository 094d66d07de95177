#pragma once

#include <cstdint>
#include <string_view>

#include "gateway/request/request_error.h"

namespace google::protobuf {
class Descriptor;
}

// What is said of bytes that are not the message that they should be.

namespace weir::gateway {

// INVALID_ARGUMENT MALFORMED_MESSAGE: in which field the bytes stop being a message of this type, and why.  The path is
// empty when that is no field's fault.  Requires: the bytes cannot be parsed.
RequestError MalformedMessage(const google::protobuf::Descriptor& type, std::string_view bytes);

// INVALID_ARGUMENT MESSAGE_TOO_LARGE and METADATA_TOO_LARGE: both sizes.
RequestError MessageTooLarge(int64_t bytes);
RequestError MetadataTooLarge(int64_t bytes);

}  // namespace weir::gateway
