#include "tests/worker/checkpoint_writer.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>

#include "kernels/check.h"
#include "worker/checkpoint/scale_blocks.h"
#include "worker/checkpoint/tensor_table.h"

namespace weir::worker {
namespace {

using kernels::DType;
using nlohmann::json;

// ---- deterministic contents ----

class SplitMix {
 public:
  explicit SplitMix(std::string_view name) {
    for (const char c : name) state_ = (state_ ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  }
  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  // In [-1, 1).
  float Uniform() { return static_cast<float>(Next() >> 40) / 8388608.0f - 1.0f; }

 private:
  uint64_t state_ = 0xcbf29ce484222325ULL;
};

uint16_t ToBFloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// Round to nearest even for normal halves; test values are never outside them by more than rounding to zero.
uint16_t ToFloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const int32_t exponent = static_cast<int32_t>((bits >> 23) & 0xFF) - 127 + 15;
  if (exponent <= 0) return static_cast<uint16_t>(sign);
  const uint32_t mantissa = bits & 0x7FFFFF;
  const uint32_t half = sign | static_cast<uint32_t>(exponent) << 10 | mantissa >> 13;
  const uint32_t rest = mantissa & 0x1FFF;
  return static_cast<uint16_t>(half + (rest > 0x1000 || (rest == 0x1000 && (half & 1))));
}

struct Distribution {
  float center = 0.0f;
  float spread = 1.0f;
};

Distribution DistributionOf(const TensorSpec& spec) {
  const std::string_view name = spec.name;
  if (name.ends_with("e_score_correction_bias")) return {0.0f, 1.0f};
  if (spec.shape.size() == 1) return {1.0f, 0.4f};
  if (name.ends_with("embed_tokens.weight")) return {0.0f, 1.0f};
  if (name.ends_with("mlp.gate.weight")) return {0.0f, 0.3f};
  return {0.0f, 1.7f / std::sqrt(static_cast<float>(spec.shape[1]))};
}

std::string WideBytes(const TensorSpec& spec, DType dtype, int64_t elements) {
  SplitMix random(spec.name);
  const auto [center, spread] = DistributionOf(spec);
  std::string bytes(elements * kernels::SizeOf(dtype), '\0');
  for (int64_t i = 0; i < elements; ++i) {
    const float value = center + spread * random.Uniform();
    if (dtype == DType::kF32) {
      std::memcpy(&bytes[i * 4], &value, 4);
    } else {
      const uint16_t half = dtype == DType::kBF16 ? ToBFloat16(value) : ToFloat16(value);
      std::memcpy(&bytes[i * 2], &half, 2);
    }
  }
  return bytes;
}

// Any e4m3 byte but the two NaNs.
std::string Fp8Bytes(const TensorSpec& spec, int64_t elements) {
  SplitMix random(spec.name);
  std::string bytes(elements, '\0');
  for (char& byte : bytes) {
    const uint64_t draw = random.Next() >> 32;
    byte = static_cast<char>((draw & 0x80) | std::min<uint64_t>(draw & 0x7F, 0x7E));
  }
  return bytes;
}

std::string ScaleBytes(const std::string& name, float typical, bool powers_of_two, int64_t elements) {
  SplitMix random(name);
  std::string bytes(elements * 4, '\0');
  for (int64_t i = 0; i < elements; ++i) {
    float scale = typical * (1.0f + 0.5f * random.Uniform());
    if (powers_of_two) scale = std::exp2(std::round(std::log2(scale)));
    std::memcpy(&bytes[i * 4], &scale, 4);
  }
  return bytes;
}

int64_t NumElements(const std::vector<int64_t>& shape) {
  int64_t elements = 1;
  for (const int64_t size : shape) elements *= size;
  return elements;
}

int64_t NumBytes(const WrittenTensor& tensor) {
  if (!tensor.bytes.empty()) return static_cast<int64_t>(tensor.bytes.size());
  static const std::map<std::string, int64_t> kSizes = {{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F8_E4M3", 1}};
  const auto size = kSizes.find(tensor.dtype);
  return size == kSizes.end() ? 0 : NumElements(tensor.shape) * size->second;
}

json Merged(json base, const json& changes) {
  base.update(changes);
  return base;
}

json Fp8Quantization() {
  return {
      {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"activation_scheme", "dynamic"}, {"weight_block_size", {128, 128}}};
}

}  // namespace

TestDirectory::TestDirectory() {
  std::string pattern = (std::filesystem::temp_directory_path() / "weir_test_XXXXXX").string();
  WEIR_CHECK(mkdtemp(pattern.data()) != nullptr, pattern);
  path_ = pattern;
}

TestDirectory::~TestDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void WriteTextFile(const std::string& path, std::string_view text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.flush();
  WEIR_CHECK(file.good(), path);
}

json TinyV3Config() {
  return {{"architectures", {"DeepseekV3ForCausalLM"}},
          {"model_type", "deepseek_v3"},
          {"vocab_size", 96},
          {"hidden_size", 64},
          {"num_hidden_layers", 3},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 4},
          {"q_lora_rank", 48},
          {"kv_lora_rank", 32},
          {"qk_nope_head_dim", 24},
          {"qk_rope_head_dim", 16},
          {"v_head_dim", 40},
          {"n_routed_experts", 16},
          {"n_shared_experts", 1},
          {"num_experts_per_tok", 4},
          {"n_group", 4},
          {"topk_group", 2},
          {"scoring_func", "sigmoid"},
          {"topk_method", "noaux_tc"},
          {"norm_topk_prob", true},
          {"routed_scaling_factor", 2.5},
          {"first_k_dense_replace", 1},
          {"moe_layer_freq", 1},
          {"intermediate_size", 80},
          {"moe_intermediate_size", 32},
          {"hidden_act", "silu"},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 10000},
          {"rope_scaling",
           {{"type", "yarn"},
            {"factor", 40},
            {"beta_fast", 32},
            {"beta_slow", 1},
            {"mscale", 1.0},
            {"mscale_all_dim", 1.0},
            {"original_max_position_embeddings", 32}}},
          {"max_position_embeddings", 1280},
          {"tie_word_embeddings", false},
          {"attention_bias", false},
          {"num_nextn_predict_layers", 1},
          {"bos_token_id", 0},
          {"eos_token_id", 1},
          {"torch_dtype", "bfloat16"}};
}

json TinyV3Fp8Config() {
  return Merged(TinyV3Config(), {{"hidden_size", 192},
                                 {"num_attention_heads", 4},
                                 {"q_lora_rank", 160},
                                 {"kv_lora_rank", 144},
                                 {"qk_nope_head_dim", 32},
                                 {"qk_rope_head_dim", 32},
                                 {"v_head_dim", 48},
                                 {"n_routed_experts", 8},
                                 {"n_group", 2},
                                 {"topk_group", 1},
                                 {"intermediate_size", 320},
                                 {"moe_intermediate_size", 136},
                                 {"quantization_config", Fp8Quantization()}});
}

json TinyV2Config() {
  return Merged(TinyV3Config(), {{"architectures", {"DeepseekV2ForCausalLM"}},
                                 {"model_type", "deepseek_v2"},
                                 {"scoring_func", "softmax"},
                                 {"topk_method", "group_limited_greedy"},
                                 {"norm_topk_prob", false},
                                 {"routed_scaling_factor", 16.0},
                                 {"n_shared_experts", 2},
                                 {"topk_group", 3},
                                 {"num_nextn_predict_layers", 0}});
}

json TinyV2LiteConfig() {
  json config = Merged(TinyV2Config(), {{"q_lora_rank", nullptr},
                                        {"topk_method", "greedy"},
                                        {"routed_scaling_factor", 1.0},
                                        {"n_group", 1},
                                        {"topk_group", 1}});
  config["rope_scaling"]["mscale"] = 0.707;
  config["rope_scaling"]["mscale_all_dim"] = 0.707;
  return config;
}

json PublishedV3Config() {
  json config = Merged(TinyV3Config(), {{"vocab_size", 129280},
                                        {"hidden_size", 7168},
                                        {"num_hidden_layers", 61},
                                        {"num_attention_heads", 128},
                                        {"num_key_value_heads", 128},
                                        {"q_lora_rank", 1536},
                                        {"kv_lora_rank", 512},
                                        {"qk_nope_head_dim", 128},
                                        {"qk_rope_head_dim", 64},
                                        {"v_head_dim", 128},
                                        {"n_routed_experts", 256},
                                        {"num_experts_per_tok", 8},
                                        {"n_group", 8},
                                        {"topk_group", 4},
                                        {"first_k_dense_replace", 3},
                                        {"intermediate_size", 18432},
                                        {"moe_intermediate_size", 2048},
                                        {"max_position_embeddings", 163840},
                                        {"attention_dropout", 0.0},
                                        {"ep_size", 1},
                                        {"initializer_range", 0.02},
                                        {"quantization_config", Fp8Quantization()}});
  config["rope_scaling"]["original_max_position_embeddings"] = 4096;
  return config;
}

CheckpointWriter::CheckpointWriter(json config_json, DType wide, bool with_data) : config(std::move(config_json)) {
  const absl::StatusOr<ModelConfig> parsed = ParseModelConfig(config.dump(), "", "test config");
  WEIR_CHECK(parsed.ok(), std::string(parsed.status().message()));
  for (const TensorSpec& spec : TensorTable(*parsed)) {
    const int64_t elements = NumElements(spec.shape);
    const bool is_fp8 = parsed->fp8 && spec.may_be_fp8;
    const bool is_bias = spec.name.ends_with("e_score_correction_bias");
    const DType dtype = is_fp8 ? DType::kF8E4M3 : is_bias ? DType::kF32 : wide;
    WrittenTensor tensor{spec.name, std::string(kernels::Name(dtype)), spec.shape, "", 0};
    if (with_data) tensor.bytes = is_fp8 ? Fp8Bytes(spec, elements) : WideBytes(spec, dtype, elements);
    tensors.push_back(std::move(tensor));
    if (!is_fp8) continue;
    WrittenTensor scales{
        spec.name + "_scale_inv", "F32", {NumScaleBlocks(spec.shape[0]), NumScaleBlocks(spec.shape[1])}, "", 0};
    // e4m3 bytes drawn evenly have a root mean square of about 100.
    const float typical = DistributionOf(spec).spread / 170.0f;
    const bool powers_of_two = parsed->fp8->scale_format == kernels::ScaleFormat::kUe8m0;
    if (with_data) scales.bytes = ScaleBytes(scales.name, typical, powers_of_two, NumElements(scales.shape));
    tensors.push_back(std::move(scales));
  }
}

WrittenTensor& CheckpointWriter::Find(std::string_view name) {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [&](const WrittenTensor& t) { return t.name == name; });
  WEIR_CHECK(found != tensors.end(), std::string(name));
  return *found;
}

void CheckpointWriter::Remove(std::string_view name) {
  WEIR_CHECK(std::erase_if(tensors, [&](const WrittenTensor& t) { return t.name == name; }) == 1, std::string(name));
}

void CheckpointWriter::Shard(int num_files) {
  num_files_ = num_files;
  has_index_ = true;
  int64_t total = 0;
  for (const WrittenTensor& tensor : tensors) total += NumBytes(tensor);
  int64_t before = 0;
  for (WrittenTensor& tensor : tensors) {
    tensor.file = static_cast<int>(std::min<int64_t>(before / (total / num_files + 1), num_files - 1));
    before += NumBytes(tensor);
  }
}

std::string CheckpointWriter::FileName(int file) const {
  if (!has_index_) return "model.safetensors";
  std::array<char, 64> name;
  std::snprintf(name.data(), name.size(), "model-%05d-of-%06d.safetensors", file + 1, num_files_);
  return name.data();
}

std::string CheckpointWriter::HeaderJson(int file) const {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  int64_t offset = 0;
  for (const WrittenTensor& tensor : tensors) {
    if (tensor.file != file) continue;
    const int64_t end = offset + NumBytes(tensor);
    header[tensor.name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  while (text.size() % 4 != static_cast<size_t>(data_remainder_)) text += ' ';
  return text;
}

json CheckpointWriter::Index() const {
  json index = {{"metadata", {{"total_size", 0}}}, {"weight_map", json::object()}};
  int64_t total = 0;
  for (const WrittenTensor& tensor : tensors) {
    index["weight_map"][tensor.name] = FileName(tensor.file);
    total += NumBytes(tensor);
  }
  index["metadata"]["total_size"] = total;
  return index;
}

std::string SafetensorsBytes(std::string_view header, std::string_view data) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(header.size() >> (8 * i));
  bytes += header;
  bytes += data;
  return bytes;
}

void CheckpointWriter::Write(const std::string& directory) const {
  std::filesystem::create_directories(directory);
  WriteTextFile(directory + "/config.json", config.dump(1));
  if (!generation_config.is_null()) WriteTextFile(directory + "/generation_config.json", generation_config.dump(1));
  if (has_index_) WriteTextFile(directory + "/model.safetensors.index.json", Index().dump());
  for (int file = 0; file < num_files_; ++file) {
    const std::string path = directory + "/" + FileName(file);
    const std::string header = SafetensorsBytes(HeaderJson(file), "");
    std::ofstream out(path, std::ios::binary);
    out << header;
    int64_t end = static_cast<int64_t>(header.size());
    for (const WrittenTensor& tensor : tensors) {
      if (tensor.file != file) continue;
      if (tensor.bytes.empty()) {
        out.seekp(end + NumBytes(tensor));
      } else {
        out << tensor.bytes;
      }
      end += NumBytes(tensor);
    }
    out.close();
    WEIR_CHECK(!out.fail(), path);
    WEIR_CHECK(truncate(path.c_str(), end) == 0, path);  // a hole at the end needs its length
  }
}

}  // namespace weir::worker
