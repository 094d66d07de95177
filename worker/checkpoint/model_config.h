#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

// config.json of a HuggingFace directory, under HuggingFace's names, checked once.

namespace weir::worker {

struct YarnConfig {
  double factor = 1.0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double mscale = 1.0;
  double mscale_all_dim = 0.0;
  int64_t original_max_position_embeddings = 0;
};

struct ModelConfig {
  enum class Family { kDeepseekV2, kDeepseekV3 };
  Family family = Family::kDeepseekV3;
  std::string architecture;  // architectures[0]
  std::string model_type;

  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t num_hidden_layers = 0;
  int32_t num_attention_heads = 0;
  int32_t q_lora_rank = 0;  // 0 = null: one q_proj
  int32_t kv_lora_rank = 0;
  int32_t qk_nope_head_dim = 0;
  int32_t qk_rope_head_dim = 0;
  int32_t v_head_dim = 0;
  int32_t intermediate_size = 0;
  int32_t moe_intermediate_size = 0;
  int32_t n_routed_experts = 0;
  int32_t n_shared_experts = 0;
  int32_t num_experts_per_tok = 0;
  int32_t n_group = 1;
  int32_t topk_group = 1;
  std::string scoring_func;  // "sigmoid" | "softmax"
  std::string topk_method;   // "noaux_tc" | "greedy" | "group_limited_greedy"
  bool norm_topk_prob = false;
  double routed_scaling_factor = 1.0;
  int32_t first_k_dense_replace = 0;
  int32_t moe_layer_freq = 1;
  int32_t num_nextn_predict_layers = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  std::optional<YarnConfig> yarn;
  int64_t max_position_embeddings = 0;
  int32_t bos_token_id = -1;           // -1 = none
  std::vector<int32_t> eos_token_ids;  // generation_config.json's list wins over config.json's
  std::string torch_dtype;

  struct Fp8 {
    kernels::ScaleFormat scale_format = kernels::ScaleFormat::kF32;
  };
  std::optional<Fp8> fp8;  // quantization_config

  bool IsMoeLayer(int32_t layer) const {
    return n_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
  }
  int32_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int32_t cache_width() const { return kv_lora_rank + qk_rope_head_dim; }
  double SoftmaxScale() const;                  // spec 2.5: qk_head_dim^-1/2, times m^2 under YaRN
  std::vector<double> RopeFrequencies() const;  // [dr / 2], YaRN applied
  double RopeAmplitude() const;                 // of cos and sin
  kernels::RouterShape Router() const;          // spec 2.7, 2.8
};

// Parses config.json's text, and generation_config.json's when there is one (empty otherwise).  INVALID_ARGUMENT names
// the field, what it holds and what is allowed.  `origin` stands in front of every message, usually the file's path.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json, std::string_view generation_config_json,
                                             std::string_view origin);

}  // namespace weir::worker
