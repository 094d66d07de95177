#pragma once

#include <memory>
#include <string>

// Connections between the processes of a cluster.

namespace grpc {
class Channel;
}

namespace weir::channels {

// To a scheduler or a rank: host:port or unix:/path.  Connects again at once when the other side comes back, notices
// a host that vanished within 15 s, and shares no connection with other channels.  Messages above the bound end a call.
std::shared_ptr<grpc::Channel> NewInternalChannel(const std::string& address, int max_message_bytes);

}  // namespace weir::channels
