#pragma once

#include <cstdint>

// What a request may hold.  Everything that a client can make large has a bound here; going over one is
// INVALID_ARGUMENT with the field, its size and the bound.

namespace weir::gateway::limits {

inline constexpr int64_t kMaxRequestBytes = 8 << 20;  // of a message on the wire
// What is still read, so that it can be refused in our words; gRPC refuses what is larger while it comes in.
inline constexpr int64_t kMaxReceivedBytes = 2 * kMaxRequestBytes;
inline constexpr int64_t kMaxMetadataBytes = 8 << 10;  // of a call, counted as HTTP/2 does
// What is still read, so that only the call is refused: beyond it gRPC ends the connection, and with it every other
// call that a proxy has put there.
inline constexpr int64_t kMaxReceivedMetadataBytes = 64 << 10;
inline constexpr int32_t kMaxMessages = 2048;
inline constexpr int32_t kMaxTools = 128;
inline constexpr int32_t kMaxToolCalls = 128;  // of one message
inline constexpr int32_t kMaxToolNameBytes = 64;
inline constexpr int32_t kMaxSchemaBytes = 64 << 10;  // of one tool
inline constexpr int32_t kMaxSchemaDepth = 64;
inline constexpr int32_t kMaxStopTexts = 16;
inline constexpr int32_t kMaxStopTextBytes = 256;
inline constexpr int32_t kMaxStopTokens = 64;
inline constexpr int32_t kMaxLogitBias = 1024;
inline constexpr int32_t kMaxTopLogprobs = 20;
inline constexpr int32_t kMaxRequestIdBytes = 64;
inline constexpr int32_t kMaxUserBytes = 512;

}  // namespace weir::gateway::limits
