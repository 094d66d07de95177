#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/checkpoint/layout.h"
#include "worker/rank.h"

// Everything a step writes besides the cache: allocated once, reused by every layer and step.

namespace weir::worker {

// Rows: T max_num_batched_tokens, S the most rows that go through the head at once.  Columns as in weights.h, and K
// num_experts_per_tok.  `act` is the backend's activation_dtype().
struct Activations {
  kernels::TensorView hidden;     // [T, D] act: the residual stream
  kernels::TensorView normed;     // [T, D] act: what a block reads
  kernels::TensorView block_out;  // [T, D] act: what a block adds to the residual stream
  // attention
  kernels::TensorView q_a;        // [T, Rq] act: the query's latent; none without q_lora_rank
  kernels::TensorView q;          // [T, H * (dn + dr)] act
  kernels::TensorView kv_a;       // [T, C + dr] act: latent and rope part before they go to the cache
  kernels::TensorView attention;  // [T, H * dv] act
  // mixture of experts
  kernels::TensorView router_logits;   // [T, E] f32
  kernels::TensorView expert_ids;      // [T, K] i32
  kernels::TensorView expert_weights;  // [T, K] f32
  kernels::TensorView shared_out;      // [T, D] act: this rank's part of the shared expert; none without
  // head
  kernels::TensorView head_in;      // [S, D] act: the rows whose logits are wanted
  kernels::TensorView logits_part;  // [S, V of this rank] f32
  kernels::TensorView logits;       // [S, V] f32

  kernels::DeviceBuffer buffer;  // what the views point into
};

// The most rows of prompt log-probabilities in one pass through the head.
inline constexpr int32_t kMaxPromptLogitsRows = 64;
// S above.
int64_t MaxLogitsRows(const RankOptions& options);

// The bytes of all of them, one after the other.
int64_t ActivationBytes(const ModelConfig& config, const RankOptions& options, kernels::DType activation_dtype);

absl::StatusOr<Activations> AllocateActivations(const ModelConfig& config, const RankOptions& options,
                                                kernels::Backend* backend);

}  // namespace weir::worker
