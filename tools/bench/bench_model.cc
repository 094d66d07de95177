#include "tools/bench/bench_model.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "tools/bench/random_checkpoint.h"

namespace weir::tools {
namespace {

namespace fs = std::filesystem;

constexpr char kShape[] = R"({
  "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "torch_dtype": "bfloat16",
  "vocab_size": 32256, "hidden_size": 1024, "num_hidden_layers": 9, "num_attention_heads": 16,
  "q_lora_rank": 512, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
  "intermediate_size": 4096, "first_k_dense_replace": 1, "moe_layer_freq": 1, "moe_intermediate_size": 384,
  "n_routed_experts": 64, "n_shared_experts": 1, "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1,
  "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": true, "routed_scaling_factor": 2.5,
  "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 32768,
  "bos_token_id": 0, "eos_token_id": 1)";
constexpr char kFp8[] = R"(,
  "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                          "weight_block_size": [128, 128]})";

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string Utf8(uint32_t code) {  // below U+0800
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

// How byte-level vocabularies write a byte (GPT-2's bytes_to_unicode): printable ones as they are, others from U+0100
// on.
std::string ByteSymbol(uint32_t byte, uint32_t& num_others) {
  const bool is_printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
  return Utf8(is_printable ? byte : 0x100 + num_others++);
}

}  // namespace

std::string PlainTokenizerJson(int32_t vocab_size) {
  using nlohmann::json;
  json vocabulary = json::object();
  uint32_t num_others = 0;
  for (int32_t id = 0; id < vocab_size; ++id) {
    if (id < 256) {
      vocabulary[ByteSymbol(static_cast<uint32_t>(id), num_others)] = id;
    } else {
      vocabulary[absl::StrCat("\u0120w", id)] = id;  // U+0120 stands for a space
    }
  }
  const json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  const json root = {{"version", "1.0"},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"added_tokens", json::array()},
                     {"normalizer", nullptr},
                     {"pre_tokenizer", byte_level},
                     {"post_processor", nullptr},
                     {"decoder", byte_level},
                     {"model",
                      {{"type", "BPE"},
                       {"dropout", nullptr},
                       {"unk_token", nullptr},
                       {"continuing_subword_prefix", nullptr},
                       {"end_of_word_suffix", nullptr},
                       {"fuse_unk", false},
                       {"byte_fallback", false},
                       {"vocab", vocabulary},
                       {"merges", json::array()}}}};
  return root.dump();
}

absl::StatusOr<std::string> MakeBenchModel(const std::string& cache, const std::string& dtype,
                                           const std::function<void(int64_t, int64_t)>& progress) {
  const RandomCheckpoint model{std::string(kShape) + (dtype == "fp8" ? kFp8 : "") + "\n}\n"};
  const std::string directory = absl::StrCat(cache, "/v3-754m-", dtype);
  if (ReadFile(directory + "/config.json") != model.config_json) {
    std::error_code error;
    fs::remove_all(directory, error);
    if (absl::Status status = WriteRandomCheckpoint(model, directory, progress); !status.ok()) return status;
  }
  const std::string tokenizer = directory + "/tokenizer.json";
  if (fs::exists(tokenizer)) return directory;
  std::ofstream file(tokenizer);
  file << PlainTokenizerJson(kBenchModelVocabulary);
  if (!file.flush()) return absl::UnavailableError("cannot write " + tokenizer);
  return directory;
}

std::string DefaultBenchCache() {
  const char* home = std::getenv("HOME");
  return std::string(home == nullptr ? "." : home) + "/.cache/weir/bench";
}

}  // namespace weir::tools
