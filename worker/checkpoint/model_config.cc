#include "worker/checkpoint/model_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/check.h"
#include "worker/checkpoint/config_reader.h"
#include "worker/checkpoint/json.h"

namespace weir::worker {
namespace {

using nlohmann::json;
using Family = ModelConfig::Family;

// ---- what is known, as data ----

struct Architecture {
  const char* name;
  Family family;
  const char* models;
};
constexpr Architecture kArchitectures[] = {
    {"DeepseekV3ForCausalLM", Family::kDeepseekV3, "V3, R1, V3.1"},
    {"DeepseekV2ForCausalLM", Family::kDeepseekV2, "V2, V2-Lite"},
};

// Sizes and counts.  The upper bounds are far above any published model, and low enough that every product and sum over
// the tensor table stays below 2^63.
struct IntegerField {
  const char* name;
  int32_t ModelConfig::* field;
  int32_t min;
  int32_t max;
  std::optional<int32_t> fallback;  // nullopt: the field must be there
};
constexpr int32_t kMaxLayers = 512;
const IntegerField kSizes[] = {
    {"vocab_size", &ModelConfig::vocab_size, 1, 1 << 22, {}},
    {"hidden_size", &ModelConfig::hidden_size, 1, 1 << 17, {}},
    {"num_hidden_layers", &ModelConfig::num_hidden_layers, 1, kMaxLayers, {}},
    {"num_attention_heads", &ModelConfig::num_attention_heads, 1, 1 << 12, {}},
    {"q_lora_rank", &ModelConfig::q_lora_rank, 1, 1 << 16, 0},
    {"kv_lora_rank", &ModelConfig::kv_lora_rank, 1, 1 << 16, {}},
    {"qk_nope_head_dim", &ModelConfig::qk_nope_head_dim, 1, 1 << 12, {}},
    {"qk_rope_head_dim", &ModelConfig::qk_rope_head_dim, 2, 1 << 12, {}},
    {"v_head_dim", &ModelConfig::v_head_dim, 1, 1 << 12, {}},
    {"intermediate_size", &ModelConfig::intermediate_size, 1, 1 << 20, {}},
    {"num_nextn_predict_layers", &ModelConfig::num_nextn_predict_layers, 0, 16, 0},
};
const IntegerField kMoeSizes[] = {
    {"moe_intermediate_size", &ModelConfig::moe_intermediate_size, 1, 1 << 20, {}},
    {"n_routed_experts", &ModelConfig::n_routed_experts, 1, 1 << 12, {}},
    {"n_shared_experts", &ModelConfig::n_shared_experts, 0, 1 << 8, 0},
    {"num_experts_per_tok", &ModelConfig::num_experts_per_tok, 1, 1 << 12, {}},
    {"n_group", &ModelConfig::n_group, 1, 1 << 12, 1},
    {"topk_group", &ModelConfig::topk_group, 1, 1 << 12, 1},
    {"first_k_dense_replace", &ModelConfig::first_k_dense_replace, 0, 1 << 20, 0},
    {"moe_layer_freq", &ModelConfig::moe_layer_freq, 1, 1 << 20, 1},
};
constexpr int64_t kMaxExpertsOfAllLayers = 1 << 18;

// Switches that would change results and that nothing here computes.  A field may be absent or null; otherwise it must
// hold the one value that is supported.
struct FixedField {
  const char* name;
  const char* supported;  // as JSON; "null" = the field must not be there
};
constexpr FixedField kFixedFields[] = {
    {"hidden_act", "\"silu\""},          {"attention_bias", "false"},      {"mlp_bias", "false"},
    {"tie_word_embeddings", "false"},    {"rope_interleave", "true"},      {"sliding_window", "null"},
    {"use_sliding_window", "false"},     {"attention_chunk_size", "null"}, {"attn_logit_softcapping", "null"},
    {"final_logit_softcapping", "null"}, {"swiglu_limit", "null"},         {"index_topk", "null"},
    {"partial_rotary_factor", "1.0"},    {"compression_config", "null"},
};

std::string KnownArchitectures() {
  return absl::StrJoin(kArchitectures, ", ", [](std::string* out, const Architecture& known) {
    *out += absl::StrFormat("%s (%s)", known.name, known.models);
  });
}

// ---- the parts of the file, in order ----

void ReadArchitecture(ConfigReader& reader, ModelConfig& config) {
  config.model_type = reader.String("model_type", "");
  const json* names = reader.Find("architectures");
  if (names == nullptr || !names->is_array() || names->empty() || !names->front().is_string()) {
    return reader.Refuse("architectures", "a list that begins with one of " + KnownArchitectures());
  }
  config.architecture = names->front().get<std::string>();
  for (const Architecture& known : kArchitectures) {
    if (config.architecture == known.name) {
      config.family = known.family;
      return;
    }
  }
  reader.Refuse("architectures", "one of " + KnownArchitectures(), Quoted(config.architecture));
}

template <size_t kCount>
void ReadIntegers(ConfigReader& reader, const IntegerField (&fields)[kCount], ModelConfig& config) {
  for (const IntegerField& field : fields) {
    config.*field.field = static_cast<int32_t>(reader.Integer(field.name, field.min, field.max, field.fallback));
  }
}

void ReadFixedFields(ConfigReader& reader) {
  for (const FixedField& field : kFixedFields) {
    const json* value = reader.Find(field.name);
    if (value == nullptr || *value == json::parse(field.supported)) continue;
    reader.Refuse(field.name, std::string_view(field.supported) == "null"
                                  ? "no such field (not supported)"
                                  : absl::StrFormat("%s (nothing else is supported)", field.supported));
  }
  const json* layer_types = reader.Find("layer_types");
  if (layer_types == nullptr) return;
  const bool is_full =
      layer_types->is_array() &&
      std::all_of(layer_types->begin(), layer_types->end(), [](const json& type) { return type == "full_attention"; });
  if (!is_full) reader.Refuse("layer_types", "\"full_attention\" for every layer (nothing else is supported)");
}

void CheckHeads(ConfigReader& reader, const ModelConfig& config) {
  if (config.qk_rope_head_dim % 2 != 0) reader.Refuse("qk_rope_head_dim", "an even number");
}

// Routing that no reference computes, or that would choose masked experts, is refused.
void CheckRouting(ConfigReader& reader, const ModelConfig& config) {
  const int32_t experts = config.n_routed_experts;
  if (config.num_experts_per_tok > experts) {
    reader.Refuse("num_experts_per_tok", absl::StrFormat("at most n_routed_experts = %d", experts));
  }
  if (int64_t{experts} * (config.num_hidden_layers + config.num_nextn_predict_layers) > kMaxExpertsOfAllLayers) {
    reader.Refuse("n_routed_experts",
                  absl::StrFormat("at most %d experts in all layers together", kMaxExpertsOfAllLayers));
  }
  if (config.topk_method == "greedy") return;  // knows no groups
  if (experts % config.n_group != 0) {
    reader.Refuse("n_group", absl::StrFormat("a divisor of n_routed_experts = %d", experts));
  }
  if (config.topk_group > config.n_group) {
    reader.Refuse("topk_group", absl::StrFormat("at most n_group = %d", config.n_group));
  }
  if (!reader.ok()) return;
  const int32_t group_size = experts / config.n_group;
  if (config.n_group > 1 && config.topk_method == "noaux_tc" && group_size < 2) {
    reader.Refuse("n_group", "groups of at least two experts (a group's score is the sum of its two best)",
                  absl::StrFormat("%d groups of %d experts: one each", config.n_group, experts));
  }
  if (config.num_experts_per_tok > config.topk_group * group_size) {
    reader.Refuse("num_experts_per_tok", absl::StrFormat("at most topk_group * n_routed_experts / n_group = %d",
                                                         config.topk_group * group_size));
  }
}

void ReadRouting(ConfigReader& reader, ModelConfig& config) {
  const bool is_v3 = config.family == Family::kDeepseekV3;
  config.scoring_func = reader.String("scoring_func", is_v3 ? "sigmoid" : "softmax");
  config.topk_method = reader.String("topk_method", is_v3 ? "noaux_tc" : "greedy");
  config.norm_topk_prob = reader.Boolean("norm_topk_prob", is_v3);
  config.routed_scaling_factor = reader.Number("routed_scaling_factor", 1e-6, 1e6, 1.0);
  if (config.scoring_func != (is_v3 ? "sigmoid" : "softmax")) {
    reader.Refuse("scoring_func", absl::StrFormat("\"%s\" for %s (nothing else is supported)",
                                                  is_v3 ? "sigmoid" : "softmax", config.architecture));
  }
  const bool is_known = is_v3 ? config.topk_method == "noaux_tc"
                              : config.topk_method == "greedy" || config.topk_method == "group_limited_greedy";
  if (!is_known) {
    reader.Refuse("topk_method", absl::StrFormat("%s for %s (nothing else is supported)",
                                                 is_v3 ? "\"noaux_tc\"" : "\"greedy\" or \"group_limited_greedy\"",
                                                 config.architecture));
  }
}

// n_routed_experts null means a dense model; absent is an error.
void ReadExperts(ConfigReader& reader, const json& document, ModelConfig& config) {
  if (document.contains("n_routed_experts") && document["n_routed_experts"].is_null()) return;
  ReadIntegers(reader, kMoeSizes, config);
  ReadRouting(reader, config);
  if (reader.ok()) CheckRouting(reader, config);
}

void ReadYarn(ConfigReader& reader, int64_t max_position_embeddings, ModelConfig& config) {
  YarnConfig yarn;
  yarn.factor = reader.Number("factor", 1.0, 1e6);
  yarn.original_max_position_embeddings =
      reader.Integer("original_max_position_embeddings", 1, 1 << 30, max_position_embeddings);
  yarn.beta_fast = reader.Number("beta_fast", 1e-3, 1e6, 32.0);
  yarn.beta_slow = reader.Number("beta_slow", 1e-3, 1e6, 1.0);
  yarn.mscale = reader.Number("mscale", 0.0, 1e3, 1.0);
  if (yarn.mscale == 0.0) yarn.mscale = 1.0;  // 0 means "not set" to every reader of these files
  yarn.mscale_all_dim = reader.Number("mscale_all_dim", 0.0, 1e3, 0.0);
  if (yarn.beta_fast < yarn.beta_slow) {
    reader.Refuse("beta_fast", absl::StrFormat("at least beta_slow = %g", yarn.beta_slow));
  }
  if (reader.Has("attention_factor")) reader.Refuse("attention_factor", "no such field (not supported)");
  if (!reader.Boolean("truncate", true)) reader.Refuse("truncate", "true (nothing else is supported)");
  config.yarn = yarn;
}

// The kind of scaling: the old spelling says `type`, the new one `rope_type`.
std::string RopeType(ConfigReader& reader) {
  const std::string old_spelling = reader.String("type", "");
  const std::string spelling = reader.String("rope_type", old_spelling);
  if (!old_spelling.empty() && old_spelling != spelling) {
    reader.Refuse("rope_type", absl::StrFormat("the same as type, %s", Quoted(old_spelling)));
  }
  if (spelling.empty() && reader.Has("factor")) {
    reader.Refuse("type", "\"yarn\" or \"default\"", "nothing, beside a factor");
  }
  return spelling.empty() ? "default" : spelling;
}

// rope_theta and rope_scaling (transformers 4), or rope_parameters, which holds both (transformers 5).
void ReadRope(ConfigReader& reader, std::string_view origin, ModelConfig& config) {
  constexpr double kMinTheta = 1.0 + 1e-9;
  constexpr double kMaxTheta = 1e12;
  config.max_position_embeddings = reader.Integer("max_position_embeddings", 1, 1 << 30);
  const json* old_place = reader.Find("rope_scaling");
  const json* new_place = reader.Find("rope_parameters");
  if (old_place != nullptr && new_place != nullptr && *old_place != *new_place) {
    reader.Refuse("rope_parameters", "one of rope_scaling and rope_parameters", "both, with different contents");
  }
  const json* place = new_place != nullptr ? new_place : old_place;
  config.rope_theta = reader.Number("rope_theta", kMinTheta, kMaxTheta, 10000.0);
  if (place == nullptr) return;

  ConfigReader rope(*place, origin, new_place != nullptr ? "rope_parameters." : "rope_scaling.");
  const double theta = rope.Number("rope_theta", kMinTheta, kMaxTheta, config.rope_theta);
  if (reader.Has("rope_theta") && theta != config.rope_theta) {
    rope.Refuse("rope_theta", absl::StrFormat("the same as rope_theta, %g", config.rope_theta));
  }
  config.rope_theta = theta;
  if (rope.Number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0) {
    rope.Refuse("partial_rotary_factor", "1 (nothing else is supported)");
  }
  const std::string type = RopeType(rope);
  if (type == "yarn") {
    ReadYarn(rope, config.max_position_embeddings, config);
  } else if (type != "default") {
    rope.Refuse("type", "\"yarn\" or \"default\" (nothing else is supported)", Quoted(type));
  }
  reader.Take(rope.status());
}

void ReadQuantization(ConfigReader& reader, std::string_view origin, ModelConfig& config) {
  const json* place = reader.Find("quantization_config");
  if (place == nullptr) return;
  ConfigReader fp8(*place, origin, "quantization_config.");
  const auto require = [&](const char* field, const std::string& found, std::string_view only) {
    if (found != only) fp8.Refuse(field, absl::StrFormat("\"%s\" (nothing else is supported)", only));
  };
  require("quant_method", fp8.String("quant_method"), "fp8");
  require("fmt", fp8.String("fmt", "e4m3"), "e4m3");
  require("activation_scheme", fp8.String("activation_scheme", "dynamic"), "dynamic");
  const json* block = fp8.Find("weight_block_size");
  if (block == nullptr || *block != json::array({128, 128})) {
    fp8.Refuse("weight_block_size", "[128, 128] (nothing else is supported)",
               block != nullptr && block->is_array() && block->size() <= 8 ? block->dump() : "something else");
  }
  const std::string scale_format = fp8.String("scale_fmt", "");
  const bool is_ue8m0 = scale_format == "ue8m0";
  config.fp8 = ModelConfig::Fp8{is_ue8m0 ? kernels::ScaleFormat::kUe8m0 : kernels::ScaleFormat::kF32};
  if (!is_ue8m0 && !scale_format.empty()) {
    fp8.Refuse("scale_fmt", "\"ue8m0\", or no such field for f32 scales (nothing else is supported)");
  }
  reader.Take(fp8.status());
}

// One id or a list of them.
std::vector<int32_t> ReadTokenIds(ConfigReader& reader, const char* field, int32_t vocab_size) {
  const json* value = reader.Find(field);
  std::vector<int32_t> ids;
  if (value == nullptr) return ids;
  const json list = value->is_array() ? *value : json::array({*value});
  const auto is_id = [&](const json& id) {
    return id.is_number_unsigned() && id.get<uint64_t>() < static_cast<uint64_t>(vocab_size);
  };
  if (list.size() > 1024 || !std::all_of(list.begin(), list.end(), is_id)) {
    reader.Refuse(field, absl::StrFormat("token ids from 0 to vocab_size - 1 = %d", vocab_size - 1));
    return ids;
  }
  for (const json& id : list) ids.push_back(id.get<int32_t>());
  return ids;
}

void ReadTokens(ConfigReader& reader, ModelConfig& config) {
  const std::vector<int32_t> bos = ReadTokenIds(reader, "bos_token_id", config.vocab_size);
  if (bos.size() > 1) reader.Refuse("bos_token_id", "one token id");
  if (!bos.empty()) config.bos_token_id = bos.front();
  std::vector<int32_t> eos = ReadTokenIds(reader, "eos_token_id", config.vocab_size);
  if (!eos.empty()) config.eos_token_ids = std::move(eos);
}

absl::Status ReadGenerationConfig(std::string_view text, std::string_view origin, ModelConfig& config) {
  const std::string generation_origin = absl::StrFormat("%s (generation_config.json)", origin);
  const absl::StatusOr<json> document = ParseJson(text, generation_origin);
  if (!document.ok()) return document.status();
  ConfigReader reader(*document, generation_origin, "");
  ReadTokens(reader, config);
  return reader.status();
}

// YaRN's magnitude M(s, a) = 0.1 a ln s + 1.
double YarnMagnitude(double factor, double scale) { return factor <= 1.0 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0; }

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json, std::string_view generation_config_json,
                                             std::string_view origin) {
  const absl::StatusOr<json> document = ParseJson(config_json, origin);
  if (!document.ok()) return document.status();
  ModelConfig config;
  ConfigReader reader(*document, origin, "");
  if (reader.ok()) ReadArchitecture(reader, config);
  if (!reader.ok()) return reader.status();  // other fields mean nothing to another architecture

  ReadFixedFields(reader);
  ReadIntegers(reader, kSizes, config);
  CheckHeads(reader, config);
  ReadExperts(reader, *document, config);
  config.rms_norm_eps = reader.Number("rms_norm_eps", 1e-12, 1.0, 1e-6);
  ReadRope(reader, origin, config);
  ReadQuantization(reader, origin, config);
  ReadTokens(reader, config);
  config.torch_dtype = reader.String("torch_dtype", reader.String("dtype", ""));
  if (!reader.ok()) return reader.status();

  if (!generation_config_json.empty()) {
    if (absl::Status status = ReadGenerationConfig(generation_config_json, origin, config); !status.ok()) return status;
  }
  return config;
}

double ModelConfig::SoftmaxScale() const {
  const double scale = 1.0 / std::sqrt(static_cast<double>(qk_head_dim()));
  if (!yarn || yarn->mscale_all_dim == 0.0) return scale;
  const double magnitude = YarnMagnitude(yarn->factor, yarn->mscale_all_dim);
  return scale * magnitude * magnitude;
}

double ModelConfig::RopeAmplitude() const {
  if (!yarn) return 1.0;
  return YarnMagnitude(yarn->factor, yarn->mscale) / YarnMagnitude(yarn->factor, yarn->mscale_all_dim);
}

std::vector<double> ModelConfig::RopeFrequencies() const {
  const int32_t width = qk_rope_head_dim;
  std::vector<double> frequencies(width / 2);
  for (int32_t i = 0; i < width / 2; ++i) frequencies[i] = std::pow(rope_theta, -2.0 * i / width);
  if (!yarn) return frequencies;

  // The dimension that turns `rotations` times over the original context.
  const auto dimension_of = [&](double rotations) {
    return width *
           std::log(static_cast<double>(yarn->original_max_position_embeddings) /
                    (2.0 * std::numbers::pi * rotations)) /
           (2.0 * std::log(rope_theta));
  };
  const double low = std::max(std::floor(dimension_of(yarn->beta_fast)), 0.0);
  double high = std::min(std::ceil(dimension_of(yarn->beta_slow)), width - 1.0);
  if (high == low) high += 0.001;
  for (int32_t i = 0; i < width / 2; ++i) {
    const double ramp = std::clamp((i - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] / yarn->factor * ramp + frequencies[i] * (1.0 - ramp);
  }
  return frequencies;
}

kernels::RouterShape ModelConfig::Router() const {
  using Shape = kernels::RouterShape;
  WEIR_CHECK(n_routed_experts > 0, "a dense model has no router");
  Shape shape;
  shape.scoring = scoring_func == "sigmoid" ? Shape::Scoring::kSigmoid : Shape::Scoring::kSoftmax;
  shape.num_experts = n_routed_experts;
  shape.num_experts_per_tok = num_experts_per_tok;
  if (topk_method != "greedy" && n_group > 1) {
    shape.group_score = topk_method == "noaux_tc" ? Shape::GroupScore::kTopTwoSum : Shape::GroupScore::kMax;
    shape.num_groups = n_group;
    shape.num_groups_kept = topk_group;
  }
  shape.normalizes_weights = norm_topk_prob;
  // V2 scales its weights only where it does not normalise them.
  const bool scales = family == Family::kDeepseekV3 || !norm_topk_prob;
  shape.scaling_factor = scales ? static_cast<float>(routed_scaling_factor) : 1.0f;
  return shape;
}

}  // namespace weir::worker
