#pragma once

#include <cstdint>
#include <span>
#include <string>

// What stands before every message between two ranks: enough to see at once that they do not run the same collective.

namespace weir::worker {

enum class MessageKind : uint32_t {
  kBarrier = 1,
  kAllReduce,
  kAllGather,
  kAllToAll,
  kBroadcast,
  kGoodbye,  // this rank leaves in order; nothing follows
  kFailure,  // this rank gives up; its reason follows as text, and nothing after that
};

struct MessageHeader {
  static constexpr uint32_t kMagic = 0x52494557;  // "WEIR"

  uint32_t magic = kMagic;
  MessageKind kind = MessageKind::kBarrier;
  uint32_t group = 0;             // 0 = all ranks; otherwise a subgroup's number
  uint32_t root = 0;              // of a broadcast, in the numbering of the group
  uint64_t sequence = 0;          // counts the collectives of the group
  uint64_t round = 0;             // counts the exchanges of one collective
  uint64_t collective_bytes = 0;  // what must be the same on all ranks; 0 for all-to-all
  uint64_t payload_bytes = 0;     // what follows

  // Whether two ranks are at the same place.
  bool Matches(const MessageHeader& other) const {
    return magic == other.magic && kind == other.kind && group == other.group && root == other.root &&
           sequence == other.sequence && round == other.round && collective_bytes == other.collective_bytes;
  }
  // "all-reduce 17 of 28672 bytes".
  std::string ToString() const;
};
static_assert(sizeof(MessageHeader) == 48);

// "rank 2", "ranks 1, 2 and 3".
std::string JoinRanks(std::span<const int> ranks);

}  // namespace weir::worker
