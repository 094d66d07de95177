#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/rank.h"

// One rank's shard of the weights on its backend, under the names of the checkpoint (spec 3.2, 3.3).
//
// D hidden_size, H this rank's attention heads, Rq q_lora_rank, C kv_lora_rank, dn dr dv head dims, E n_routed_experts,
// I and Id this rank's share of the MLP widths, V this rank's rows of the vocabulary.

namespace weir::worker {

struct LayerWeights {
  kernels::TensorView input_layernorm;           // [1, D] f32
  kernels::TensorView post_attention_layernorm;  // [1, D] f32

  // self_attn.  A model with q_lora_rank has q_a_proj, q_a_layernorm and q_b_proj, one without has q_proj.
  std::unique_ptr<kernels::LinearWeight> q_proj;              // [H * (dn + dr), D]
  std::unique_ptr<kernels::LinearWeight> q_a_proj;            // [Rq, D]
  kernels::TensorView q_a_layernorm;                          // [1, Rq] f32
  std::unique_ptr<kernels::LinearWeight> q_b_proj;            // [H * (dn + dr), Rq]
  std::unique_ptr<kernels::LinearWeight> kv_a_proj_with_mqa;  // [C + dr, D]
  kernels::TensorView kv_a_layernorm;                         // [1, C] f32
  std::unique_ptr<kernels::LinearWeight> kv_b_proj;           // [H * (dn + dv), C], for prompt rows
  std::unique_ptr<kernels::AbsorbedWeight> kv_b_absorbed;     // the same, for generated rows
  std::unique_ptr<kernels::LinearWeight> o_proj;              // [D, H * dv]

  // mlp of a dense layer.
  std::unique_ptr<kernels::MlpWeight> dense;  // width Id
  // mlp of a MoE layer.
  std::unique_ptr<kernels::LinearWeight> gate;         // [E, D] f32
  kernels::TensorView e_score_correction_bias;         // [1, E] f32, null for families without
  std::unique_ptr<kernels::ExpertsWeight> experts;     // those of the ExpertMap
  std::unique_ptr<kernels::MlpWeight> shared_experts;  // width I * n_shared_experts; null when there are none

  bool is_moe() const { return gate != nullptr; }
};

struct ModelWeights {
  kernels::TensorView embed_tokens;  // [V, D]
  int32_t first_token_id = 0;        // of embed_tokens
  std::vector<LayerWeights> layers;
  kernels::TensorView norm;                        // [1, D] f32
  std::unique_ptr<kernels::LinearWeight> lm_head;  // [V, D]
  // cos and sin of every position, interleaved as Backend::Rope wants them.  Computed, not read.
  kernels::TensorView rope_table;  // [max_model_len, dr] f32

  std::vector<kernels::DeviceBuffer> buffers;  // what the views point into
};

// How this rank's heads are shaped.
kernels::MlaShape RankMlaShape(const ModelConfig& config, const ParallelLayout& layout);

int32_t NumMoeLayers(const ModelConfig& config);

// The element type that a tensor stored as `stored` runs in.
kernels::DType RunDType(kernels::DType stored, WeightDType weight_dtype);

// Bytes of the weights once they are loaded, from shapes alone; a backend's own packing may add a little.
int64_t WeightsBytes(const Checkpoint& checkpoint, const ParallelLayout& layout, const ExpertMap& experts,
                     WeightDType weight_dtype, int64_t max_model_len);

// Packs tensor after tensor while other threads read ahead.  `progress(bytes done, total)` counts bytes as stored,
// after each tensor.  Temporary host memory: one tensor (one layer's experts of this rank) in its run dtype, where that
// is not the stored one.  INVALID_ARGUMENT names the tensor whose scales or values are not finite.
absl::StatusOr<ModelWeights> LoadWeights(const Checkpoint& checkpoint, const ParallelLayout& layout,
                                         const ExpertMap& experts, WeightDType weight_dtype, int64_t max_model_len,
                                         kernels::Backend* backend,
                                         const std::function<void(int64_t, int64_t)>& progress);

}  // namespace weir::worker
