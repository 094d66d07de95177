#pragma once

#include <chrono>
#include <string>

#include "absl/status/statusor.h"

// GET of a page of a process's ops port (/metrics, /healthz, /readyz).

namespace weir::tools {

struct OpsPage {
  bool is_ok = false;  // HTTP 200
  std::string text;    // with /healthz and /readyz and not ok: why not
};

// UNAVAILABLE when nobody answers in time.  `address` is host:port.
absl::StatusOr<OpsPage> GetOpsPage(const std::string& address, const std::string& path,
                                   std::chrono::milliseconds patience);

}  // namespace weir::tools
