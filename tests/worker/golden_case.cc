#include "tests/worker/golden_case.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <utility>

#include "kernels/check.h"
#include "kernels/float_formats.h"

namespace weir::worker {
namespace {

namespace fs = std::filesystem;

fs::path GoldensFolder() { return fs::path(WEIR_SOURCE_DIR) / "tests/worker/goldens"; }

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  WEIR_CHECK(file.good(), "cannot read " + path.string());
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

GoldenLogits ReadLogits(const fs::path& folder, const nlohmann::json& files, const char* arithmetic,
                        int64_t vocab_size) {
  const std::string bytes = ReadFile(folder / files.at(arithmetic).at("logits").get<std::string>());
  GoldenLogits logits{vocab_size, std::vector<float>(bytes.size() / sizeof(float))};
  std::memcpy(logits.values.data(), bytes.data(), logits.values.size() * sizeof(float));
  return logits;
}

GoldenPrompt::Continuation ReadContinuation(const nlohmann::json& prompt, const char* arithmetic) {
  GoldenPrompt::Continuation continuation;
  if (!prompt.at("generated_ids").contains(arithmetic)) return continuation;
  prompt.at("generated_ids").at(arithmetic).get_to(continuation.ids);
  prompt.at("leads").at(arithmetic).get_to(continuation.leads);
  prompt.at("near_ties").at(arithmetic).get_to(continuation.near_ties);
  return continuation;
}

GoldenCase Read(const std::string& name) {
  const fs::path folder = GoldensFolder() / name;
  const nlohmann::json json = nlohmann::json::parse(ReadFile(folder / "case.json"));
  GoldenCase golden{.name = name, .weights = json.at("weights")};
  for (const nlohmann::json& entry : json.at("prompts")) {
    GoldenPrompt prompt;
    entry.at("prompt_ids").get_to(prompt.prompt_ids);
    entry.at("first_row").get_to(prompt.first_row);
    entry.at("row_count").get_to(prompt.row_count);
    prompt.exact = ReadContinuation(entry, "exact");
    prompt.stored = ReadContinuation(entry, "stored");
    golden.prompts.push_back(std::move(prompt));
  }
  const int64_t vocab_size = json.at("vocab_size");
  const nlohmann::json& files = json.at("files");
  golden.exact = ReadLogits(folder, files, "exact", vocab_size);
  golden.transformers = ReadLogits(folder, files, "transformers", vocab_size);
  if (files.contains("stored")) golden.stored = ReadLogits(folder, files, "stored", vocab_size);
  return golden;
}

// ---- the generator ----

uint64_t Fnv1a(std::string_view text) {
  uint64_t digest = 0xCBF29CE484222325u;
  for (const char c : text) digest = (digest ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return digest;
}

// Values in [-1, 1), multiples of 2^-23.
std::vector<double> Uniform(std::string_view name, int64_t count) {
  const uint64_t seed = Fnv1a(name);
  std::vector<double> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    uint64_t z = seed + 0x9E3779B97F4A7C15u * static_cast<uint64_t>(i + 1);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    values[i] = static_cast<double>(z >> 40) * 0x1p-23 - 1.0;
  }
  return values;
}

bool EndsWith(std::string_view text, std::string_view end) { return text.ends_with(end); }

// The MTP layer's embedding and head are copies of the model's.
std::string_view SourceName(std::string_view name) {
  if (EndsWith(name, ".embed_tokens.weight")) return "model.embed_tokens.weight";
  return EndsWith(name, "shared_head.head.weight") ? "lm_head.weight" : name;
}

struct Spread {
  double offset, scale;
};

Spread SpreadOf(const WrittenTensor& tensor, double bias_offset) {
  if (EndsWith(tensor.name, "embed_tokens.weight")) return {0.0, 1.0};
  if (EndsWith(tensor.name, "e_score_correction_bias")) return {bias_offset, 1.0};
  if (tensor.shape.size() == 1) return {1.0, 0.4};
  if (EndsWith(tensor.name, "mlp.gate.weight")) return {0.0, 0.3};
  return {0.0, 1.7 / std::sqrt(static_cast<double>(tensor.shape[1]))};
}

// Rounded to BF16 in every dtype: an F32 bias holds BF16 values.
std::vector<double> ValuesOf(const WrittenTensor& tensor, double bias_offset) {
  int64_t count = 1;
  for (const int64_t size : tensor.shape) count *= size;
  const Spread spread = SpreadOf(tensor, bias_offset);
  std::vector<double> values = Uniform(SourceName(tensor.name), count);
  for (double& value : values) {
    const float wide = static_cast<float>(spread.offset + spread.scale * value);
    value = kernels::BFloat16ToFloat(kernels::FloatToBFloat16(wide));
  }
  return values;
}

template <typename T>
void Append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// The nearest value of e4m3, from a double: rounding to float first could make a tie.
double RoundToE4M3(double value) {
  const double magnitude = std::min(std::fabs(value), 448.0);
  const int exponent = magnitude > 0.0 ? std::ilogb(magnitude) : -6;
  const double step = std::ldexp(1.0, std::max(exponent, -6) - 3);
  return std::copysign(std::nearbyint(magnitude / step) * step, value);
}

// Fills an FP8 weight and its scales, one per block of 128 x 128.
void Quantize(const std::vector<double>& values, bool is_ue8m0, WrittenTensor& weight, WrittenTensor& scale) {
  const int64_t rows = weight.shape[0], cols = weight.shape[1], blocks = scale.shape[1];
  std::vector<double> amax(static_cast<size_t>(scale.shape[0] * blocks), 1e-12);
  auto block_of = [&](int64_t i) { return static_cast<size_t>(i / cols / 128 * blocks + i % cols / 128); };
  for (int64_t i = 0; i < rows * cols; ++i) amax[block_of(i)] = std::max(amax[block_of(i)], std::fabs(values[i]));
  std::vector<float> scales;
  scales.reserve(amax.size());
  for (const double largest : amax) {
    const float exact = static_cast<float>(largest / 448.0);
    scales.push_back(is_ue8m0 ? kernels::RoundUpToPowerOfTwo(exact) : exact);
    Append(scale.bytes, scales.back());
  }
  for (int64_t i = 0; i < rows * cols; ++i) {
    Append(weight.bytes, kernels::FloatToE4M3(static_cast<float>(RoundToE4M3(values[i] / scales[block_of(i)]))));
  }
}

constexpr double kBiasOffsetOfNegativeScores = -2.0;

}  // namespace

std::vector<std::string> GoldenCaseNames() {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(GoldensFolder())) {
    if (fs::exists(entry.path() / "case.json")) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

const GoldenCase& ReadGoldenCase(const std::string& name) {
  static auto* cases = new std::map<std::string, GoldenCase>;
  const auto known = cases->find(name);
  return known != cases->end() ? known->second : cases->emplace(name, Read(name)).first->second;
}

CheckpointWriter GeneratedCheckpoint(const nlohmann::json& config, double bias_offset) {
  CheckpointWriter writer(config, kernels::DType::kBF16, /*with_data=*/false);
  const bool is_ue8m0 =
      config.contains("quantization_config") && config["quantization_config"].value("scale_fmt", "") == "ue8m0";
  for (WrittenTensor& tensor : writer.tensors) {
    if (EndsWith(tensor.name, "_scale_inv")) continue;  // written with its weight
    const std::vector<double> values = ValuesOf(tensor, bias_offset);
    if (tensor.dtype == "F8_E4M3") {
      Quantize(values, is_ue8m0, tensor, writer.Find(tensor.name + "_scale_inv"));
      continue;
    }
    for (const double value : values) {
      if (tensor.dtype == "F32") {
        Append(tensor.bytes, static_cast<float>(value));
      } else {
        Append(tensor.bytes, kernels::FloatToBFloat16(static_cast<float>(value)));
      }
    }
  }
  return writer;
}

const Checkpoint& GoldenCheckpoint(const std::string& name) {
  struct Opened {
    TestDirectory directory;
    std::unique_ptr<Checkpoint> checkpoint;
  };
  static auto* opened = new std::map<std::string, Opened>;
  const auto [place, is_new] = opened->try_emplace(name);
  if (!is_new) return *place->second.checkpoint;

  const fs::path folder = GoldensFolder() / name, target = place->second.directory.path();
  const std::string source = nlohmann::json::parse(ReadFile(folder / "case.json")).at("weights_from");
  if (source == "generator") {
    const nlohmann::json config = nlohmann::json::parse(ReadFile(folder / "config.json"));
    GeneratedCheckpoint(config, name == "v3neg" ? kBiasOffsetOfNegativeScores : 0.0).Write(target.string());
  } else {
    fs::copy_file(folder / "config.json", target / "config.json");
    fs::copy_file(GoldensFolder() / source / "model.safetensors", target / "model.safetensors");
  }
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(target.string());
  WEIR_CHECK(checkpoint.ok(), std::string(checkpoint.status().message()));
  place->second.checkpoint = *std::move(checkpoint);
  return *place->second.checkpoint;
}

}  // namespace weir::worker
