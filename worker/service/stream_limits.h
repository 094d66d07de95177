#pragma once

// What both ends of WorkerService.Run agree on.

namespace weir::worker {

// A plan that sets up many long prompts, or a result with the log-probabilities of one.
inline constexpr int kMaxMessageBytes = 256 << 20;
// A host that vanished without closing its connections is noticed within the sum.
inline constexpr int kKeepaliveMs = 10'000;
inline constexpr int kKeepaliveTimeoutMs = 5'000;

}  // namespace weir::worker
