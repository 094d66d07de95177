#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/rank.h"

// What a rank's options come to, once the defaults of the model are filled in.

namespace weir::worker {

// The expert map that `options` means.
ExpertMap ExpertMapOf(const ModelConfig& config, const RankOptions& options);

// Element of the latent cache.
kernels::DType CacheDType(const Checkpoint& checkpoint, const RankOptions& options);

// max_model_len, or the model's own.
int64_t MaxModelLen(const ModelConfig& config, const RankOptions& options);

// Bytes that this machine can still give: what is free or can be freed at once, and no more than its control group
// allows.  Large when it cannot be read.
int64_t AvailableHostBytes();

}  // namespace weir::worker
