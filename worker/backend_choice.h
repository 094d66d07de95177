#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

// The one place where a backend is chosen by name.

namespace weir::worker {

struct BackendChoice {
  std::string name = "cpu";  // "reference", "cpu" or "cuda"
  std::string isa;           // cpu only: forces an instruction set; empty = the fastest here
  int32_t num_threads = 0;   // cpu only: 0 = the processors this process may run on
};

// INVALID_ARGUMENT for a name that is unknown or not in this build; the message lists what there is.
absl::StatusOr<std::unique_ptr<kernels::Backend>> NewBackend(const BackendChoice& choice);

}  // namespace weir::worker
