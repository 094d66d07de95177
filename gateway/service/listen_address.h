#pragma once

#include <string_view>

namespace weir::gateway {

// "127.0.0.1:7000", "localhost:7000", "[::1]:7000", "unix:/path": only this machine can connect.
bool IsLocalAddress(std::string_view listen);

}  // namespace weir::gateway
