#pragma once

#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/cpu/tile_kernels.h"
#include "kernels/cpu/vector_ops.h"

// Instruction sets as data: a name, whether this processor has it, and its kernels.  A new one (AMX tiles, NEON) is one
// more entry in isa_x86.cc or isa_generic.cc, and one file of kernels.

namespace weir::kernels::cpu {

struct Isa {
  std::string_view name;
  bool (*is_supported)() = nullptr;
  const TileKernels& (*tiles)() = nullptr;
  const VectorOps* (*vector_ops)() = nullptr;
};

// All that this build knows, slowest first; those that the target architecture has no kernels for are not there.
std::span<const Isa> KnownIsas();

// The entry called `name`, or with an empty name the fastest here.  INVALID_ARGUMENT lists what this processor has.
absl::StatusOr<const Isa*> ChooseIsa(std::string_view name);

}  // namespace weir::kernels::cpu
