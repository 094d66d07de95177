#include "worker/backend_choice.h"

#include "absl/strings/str_cat.h"

namespace weir::worker {

absl::StatusOr<std::unique_ptr<kernels::Backend>> NewBackend(const BackendChoice& choice) {
  if (choice.name == "reference") return kernels::NewReferenceBackend();
  if (choice.name == "cpu") {
    return kernels::NewCpuBackend({.num_threads = choice.num_threads, .isa = choice.isa});
  }
  return absl::InvalidArgumentError(
      absl::StrCat("backend '", choice.name, "' is not in this build; it has: cpu, reference"));
}

}  // namespace weir::worker
