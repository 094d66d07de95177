#pragma once

#include <string>

namespace weir::gateway {

// Changes when the file does, also when it is replaced or a link on the way to it is turned.  Empty: it is not there.
std::string StampOf(const std::string& path);

}  // namespace weir::gateway
