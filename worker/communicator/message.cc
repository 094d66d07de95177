#include "worker/communicator/message.h"

namespace weir::worker {
namespace {

const char* NameOf(MessageKind kind) {
  switch (kind) {
    case MessageKind::kBarrier:
      return "barrier";
    case MessageKind::kAllReduce:
      return "all-reduce";
    case MessageKind::kAllGather:
      return "all-gather";
    case MessageKind::kAllToAll:
      return "all-to-all";
    case MessageKind::kBroadcast:
      return "broadcast";
    case MessageKind::kGoodbye:
      return "goodbye";
    case MessageKind::kFailure:
      return "failure";
  }
  return "unknown message";
}

}  // namespace

std::string MessageHeader::ToString() const {
  std::string text = std::string(NameOf(kind)) + " " + std::to_string(sequence);
  if (kind != MessageKind::kBarrier && kind != MessageKind::kAllToAll) {
    text += " of " + std::to_string(collective_bytes) + " bytes";
  }
  if (kind == MessageKind::kBroadcast) text += " from rank " + std::to_string(root);
  if (round > 0) text += ", round " + std::to_string(round);
  if (group != 0) text += ", in a subgroup";
  return text;
}

std::string JoinRanks(std::span<const int> ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (i > 0) text += i + 1 == ranks.size() ? " and " : ", ";
    text += std::to_string(ranks[i]);
  }
  return text;
}

}  // namespace weir::worker
