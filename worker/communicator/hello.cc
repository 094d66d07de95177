#include "worker/communicator/hello.h"

#include <algorithm>
#include <cstring>

namespace weir::worker {
namespace {

// Integers in the order of the machine: all ranks of a group run the same build, and a foreign order spoils the magic.
struct Wire {
  uint64_t magic;
  uint32_t version;
  Verdict verdict;
  uint32_t rank;
  uint32_t world_size;
  uint64_t epoch;
  uint32_t token_bytes;
  uint32_t reserved;
};
static_assert(sizeof(Wire) + kMaxTokenBytes <= kMaxHelloBytes);
constexpr uint64_t kMagic = 0x4b4e415252494557;  // "WEIRRANK" on a little-endian machine
constexpr uint32_t kVersion = 1;

// Takes the same time wherever the difference is.
bool SameToken(const std::string& a, const std::string& b) {
  if (a.size() != b.size()) return false;
  unsigned char difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

}  // namespace

std::string EncodeHello(const Hello& hello) {
  const Wire wire{kMagic,
                  kVersion,
                  hello.verdict,
                  hello.rank,
                  hello.world_size,
                  hello.epoch,
                  static_cast<uint32_t>(hello.token.size()),
                  0};
  std::string bytes(sizeof wire, '\0');
  std::memcpy(bytes.data(), &wire, sizeof wire);
  return bytes + hello.token;
}

absl::StatusOr<size_t> DecodeHello(std::string_view bytes, Hello& hello) {
  if (std::memcmp(bytes.data(), &kMagic, std::min(bytes.size(), sizeof kMagic)) != 0) {
    return absl::InvalidArgumentError("it does not speak the protocol of ranks");
  }
  Wire wire;
  if (bytes.size() < sizeof wire) return sizeof wire - bytes.size();
  std::memcpy(&wire, bytes.data(), sizeof wire);
  if (wire.version != kVersion) {
    return absl::InvalidArgumentError("it speaks version " + std::to_string(wire.version) +
                                      " of the protocol of ranks, this build version " + std::to_string(kVersion));
  }
  if (wire.verdict < Verdict::kHello || wire.verdict > Verdict::kWrongRank || wire.token_bytes > kMaxTokenBytes) {
    return absl::InvalidArgumentError("its hello is malformed");
  }
  if (bytes.size() < sizeof wire + wire.token_bytes) return sizeof wire + wire.token_bytes - bytes.size();
  hello = {wire.verdict, wire.rank, wire.world_size, wire.epoch,
           std::string(bytes.substr(sizeof wire, wire.token_bytes))};
  return 0;
}

Verdict Judge(const Hello& mine, const Hello& theirs) {
  if (!SameToken(mine.token, theirs.token)) return Verdict::kWrongToken;
  if (mine.epoch != theirs.epoch) return Verdict::kWrongEpoch;
  if (mine.world_size != theirs.world_size) return Verdict::kWrongWorldSize;
  if (theirs.rank >= mine.world_size || theirs.rank == mine.rank) return Verdict::kWrongRank;
  return Verdict::kAccepted;
}

std::string Explain(Verdict verdict, const Hello& mine, const Hello& theirs) {
  const std::string them = "rank " + std::to_string(theirs.rank);
  switch (verdict) {
    case Verdict::kWrongToken:
      return "the tokens differ";
    case Verdict::kWrongEpoch:
      return them + " is in epoch " + std::to_string(theirs.epoch) + ", this rank in epoch " +
             std::to_string(mine.epoch);
    case Verdict::kWrongWorldSize:
      return them + " belongs to a group of " + std::to_string(theirs.world_size) + ", this rank to one of " +
             std::to_string(mine.world_size);
    case Verdict::kWrongRank:
      return "it calls itself " + them + " and this is rank " + std::to_string(mine.rank) + " of " +
             std::to_string(mine.world_size);
    case Verdict::kHello:
    case Verdict::kAccepted:
      break;
  }
  return "nothing is wrong";
}

}  // namespace weir::worker
