#pragma once

#include <string_view>

namespace weir::config {

// The build that this process is of: `git describe` of the tree when it was linked, or what -DWEIR_BUILD_ID gave (for
// images, which hold no repository).  Processes of one replica must be of one build.
std::string_view BuildId();

}  // namespace weir::config
