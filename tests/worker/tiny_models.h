#pragma once

#include <string>

#include "worker/checkpoint/checkpoint.h"

// Tiny checkpoints that several tests run: written once per process, opened, and kept until it ends.

namespace weir::worker {

// "v3", "v3_f32", "v3_fp8", "v2", "v2_lite", and "v3_nan": v3 whose embedding of token kNanToken is not a number.
const Checkpoint& TinyModel(const std::string& name);

inline constexpr int kNanToken = 13;

}  // namespace weir::worker
