#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

// The greeting by which two ranks find that they belong to one group.  The rank that connects sends its hello; the one
// that listens checks it and answers with its own, or with a refusal.  Whoever does not know the token learns nothing
// from the answer.

namespace weir::worker {

inline constexpr size_t kMaxTokenBytes = 256;
inline constexpr size_t kMaxHelloBytes = 48 + kMaxTokenBytes;

enum class Verdict : uint32_t { kHello = 1, kAccepted, kWrongToken, kWrongEpoch, kWrongWorldSize, kWrongRank };

struct Hello {
  Verdict verdict = Verdict::kHello;
  uint32_t rank = 0;
  uint32_t world_size = 0;
  uint64_t epoch = 0;
  std::string token;  // at most kMaxTokenBytes
};

std::string EncodeHello(const Hello& hello);

// What the first bytes of a connection mean.  Returns how many more the hello has at least; 0 = it is whole, and
// `hello` is filled.  INVALID_ARGUMENT as soon as they cannot be a hello.
absl::StatusOr<size_t> DecodeHello(std::string_view bytes, Hello& hello);

// What a rank that has sent or expects `mine` says of `theirs`: kAccepted or what is wrong.  Any rank but its own fits.
Verdict Judge(const Hello& mine, const Hello& theirs);

// What is wrong, with both numbers, for people: "rank 2 is in epoch 6, this rank in epoch 7".
std::string Explain(Verdict verdict, const Hello& mine, const Hello& theirs);

}  // namespace weir::worker
