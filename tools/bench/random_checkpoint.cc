#include "tools/bench/random_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string_view>
#include <system_error>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/float_formats.h"
#include "worker/checkpoint/tensor_table.h"

namespace weir::tools {
namespace {

using kernels::DType;
using worker::TensorGroup;
using worker::TensorSpec;

constexpr int64_t kBlock = 128;  // rows and columns of an FP8 scale

// Normal numbers to take weights from, again and again: drawing each one would take most of the time.  Its length has
// no factor in common with the widths of matrices, so that rows differ.
class NormalPool {
 public:
  explicit NormalPool(uint64_t seed) : values_(1000003) {
    std::mt19937_64 engine(seed);
    // Box and Muller's formula instead of std::normal_distribution, whose numbers depend on the library.
    const auto uniform = [&] { return (static_cast<double>(engine() >> 11) + 0.5) * 0x1p-53; };
    for (float& value : values_) {
      value = static_cast<float>(std::sqrt(-2.0 * std::log(uniform())) * std::cos(6.283185307179586 * uniform()));
    }
  }
  float operator[](uint64_t i) const { return values_[i % values_.size()]; }

 private:
  std::vector<float> values_;
};

uint64_t Fnv1a(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// One tensor as it will lie in a file.
struct Tensor {
  std::string name;
  DType dtype = DType::kBF16;
  std::vector<int64_t> shape;
  const TensorSpec* spec = nullptr;
  bool holds_scales = false;  // the scales of the tensor before it
  size_t file = 0;

  int64_t num_elements() const {
    int64_t count = 1;
    for (const int64_t dim : shape) count *= dim;
    return count;
  }
  int64_t num_bytes() const { return num_elements() * kernels::SizeOf(dtype); }
};

int64_t Blocks(int64_t n) { return (n + kBlock - 1) / kBlock; }

std::vector<Tensor> ListTensors(const RandomCheckpoint& checkpoint, const worker::ModelConfig& config,
                                const std::vector<TensorSpec>& table) {
  std::vector<Tensor> tensors;
  int64_t file_bytes = 0;
  for (const TensorSpec& spec : table) {
    Tensor tensor{spec.name, checkpoint.dtype, spec.shape, &spec};
    if (config.fp8.has_value() && spec.may_be_fp8) tensor.dtype = DType::kF8E4M3;
    if (spec.name.ends_with("e_score_correction_bias")) tensor.dtype = DType::kF32;
    if (file_bytes > 0 && file_bytes + tensor.num_bytes() > checkpoint.max_file_bytes) file_bytes = 0;
    tensor.file = (tensors.empty() ? 0 : tensors.back().file) + (file_bytes == 0 && !tensors.empty() ? 1 : 0);
    file_bytes += tensor.num_bytes();
    tensors.push_back(tensor);
    if (tensor.dtype != DType::kF8E4M3) continue;
    Tensor scales{spec.name + "_scale_inv",
                  DType::kF32,
                  {Blocks(spec.shape[0]), Blocks(spec.shape[1])},
                  &spec,
                  true,
                  tensor.file};
    tensors.push_back(scales);
  }
  return tensors;
}

// What a tensor's elements look like: offset + scale * normal.
struct Distribution {
  float offset = 0.0f;
  float scale = 1.0f;
};
Distribution DistributionOf(const TensorSpec& spec) {
  if (spec.name.ends_with("e_score_correction_bias")) return {0.0f, 0.02f};
  if (spec.shape.size() == 1) return {1.0f, 0.1f};  // norms
  if (spec.group == TensorGroup::kEmbedding) return {0.0f, 1.0f};
  return {0.0f, 1.0f / std::sqrt(static_cast<float>(spec.shape[1]))};
}

// Rows of one matrix, with the scales of the rows' blocks.
class Elements {
 public:
  Elements(const NormalPool& pool, const TensorSpec& spec, uint64_t seed)
      : pool_(pool), distribution_(DistributionOf(spec)), start_(Fnv1a(spec.name) ^ (seed * 0x9e3779b97f4a7c15u)) {}
  float At(int64_t i) const {
    return distribution_.offset + distribution_.scale * pool_[start_ % (uint64_t{1} << 40) + static_cast<uint64_t>(i)];
  }

 private:
  const NormalPool& pool_;
  Distribution distribution_;
  uint64_t start_;
};

std::vector<float> MakeScales(const Elements& elements, int64_t rows, int64_t cols, bool is_ue8m0) {
  std::vector<float> scales(static_cast<size_t>(Blocks(rows) * Blocks(cols)), 0.0f);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      float& largest = scales[r / kBlock * Blocks(cols) + c / kBlock];
      largest = std::max(largest, std::fabs(elements.At(r * cols + c)));
    }
  }
  for (float& scale : scales) {
    scale = kernels::E4M3Scale(scale);
    if (is_ue8m0) scale = kernels::RoundUpToPowerOfTwo(scale);
  }
  return scales;
}

class Writer {
 public:
  Writer(const RandomCheckpoint& checkpoint, const worker::ModelConfig& config, std::string directory)
      : checkpoint_(checkpoint), config_(config), directory_(std::move(directory)), pool_(checkpoint.seed) {}

  absl::Status Write(const std::function<void(int64_t, int64_t)>& progress) {
    const std::vector<TensorSpec> table = worker::TensorTable(config_);
    tensors_ = ListTensors(checkpoint_, config_, table);
    for (const Tensor& tensor : tensors_) total_bytes_ += tensor.num_bytes();
    progress_ = progress;
    if (absl::Status status = WriteText("config.json", checkpoint_.config_json); !status.ok()) return status;
    const size_t num_files = tensors_.back().file + 1;
    nlohmann::json weight_map;
    for (size_t file = 0, first = 0; file < num_files; ++file) {
      size_t end = first;
      while (end < tensors_.size() && tensors_[end].file == file) ++end;
      const std::string name =
          num_files == 1 ? "model.safetensors" : absl::StrFormat("model-%05d-of-%05d.safetensors", file + 1, num_files);
      for (size_t i = first; i < end; ++i) weight_map[tensors_[i].name] = name;
      if (absl::Status status = WriteFile(name, first, end); !status.ok()) return status;
      first = end;
    }
    if (num_files == 1) return absl::OkStatus();
    const nlohmann::json index = {{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", weight_map}};
    return WriteText("model.safetensors.index.json", index.dump(2));
  }

 private:
  absl::Status Failed(const std::string& path) const {
    return absl::InternalError(absl::StrCat("cannot write ", path, ": ", std::strerror(errno)));
  }

  absl::Status WriteText(const std::string& name, const std::string& text) {
    const std::string path = absl::StrCat(directory_, "/", name);
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "wb"), std::fclose);
    if (file == nullptr || std::fwrite(text.data(), 1, text.size(), file.get()) != text.size() ||
        std::fflush(file.get()) != 0) {
      return Failed(path);
    }
    return absl::OkStatus();
  }

  std::string Header(size_t first, size_t end) const {
    nlohmann::ordered_json header;
    int64_t offset = 0;
    for (size_t i = first; i < end; ++i) {
      const Tensor& tensor = tensors_[i];
      header[tensor.name] = {{"dtype", std::string(kernels::Name(tensor.dtype))},
                             {"shape", tensor.shape},
                             {"data_offsets", {offset, offset + tensor.num_bytes()}}};
      offset += tensor.num_bytes();
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    return text;
  }

  absl::Status WriteFile(const std::string& name, size_t first, size_t end) {
    const std::string path = absl::StrCat(directory_, "/", name);
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "wb"), std::fclose);
    if (file == nullptr) return Failed(path);
    const std::string header = Header(first, end);
    const uint64_t length = header.size();
    bool is_good = std::fwrite(&length, sizeof(length), 1, file.get()) == 1 &&
                   std::fwrite(header.data(), 1, header.size(), file.get()) == header.size();
    for (size_t i = first; is_good && i < end; ++i) is_good = WriteTensor(tensors_[i], file.get());
    return is_good && std::fflush(file.get()) == 0 ? absl::OkStatus() : Failed(path);
  }

  bool WriteTensor(const Tensor& tensor, std::FILE* file) {
    const Elements elements(pool_, *tensor.spec, checkpoint_.seed);
    const std::vector<int64_t>& shape = tensor.spec->shape;
    const int64_t cols = shape.size() == 2 ? shape[1] : shape[0], rows = shape.size() == 2 ? shape[0] : 1;
    const bool is_ue8m0 = config_.fp8.has_value() && config_.fp8->scale_format == kernels::ScaleFormat::kUe8m0;
    if (tensor.dtype == DType::kF8E4M3 || tensor.holds_scales) {
      // A tensor's scales follow it; they are computed once, for the tensor.
      if (!tensor.holds_scales) scales_ = MakeScales(elements, rows, cols, is_ue8m0);
    }
    if (tensor.holds_scales) {
      Advance(tensor.num_bytes());
      return std::fwrite(scales_.data(), sizeof(float), scales_.size(), file) == scales_.size();
    }
    std::vector<char> row(static_cast<size_t>(cols * kernels::SizeOf(tensor.dtype)));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) Store(tensor.dtype, elements.At(r * cols + c), r, c, cols, row.data());
      if (std::fwrite(row.data(), 1, row.size(), file) != row.size()) return false;
      Advance(static_cast<int64_t>(row.size()));
    }
    return true;
  }

  void Store(DType dtype, float value, int64_t r, int64_t c, int64_t cols, char* row) const {
    if (dtype == DType::kF8E4M3) {
      row[c] = static_cast<char>(kernels::FloatToE4M3(value / scales_[r / kBlock * Blocks(cols) + c / kBlock]));
    } else if (dtype == DType::kF32) {
      std::memcpy(row + c * 4, &value, 4);
    } else {
      const uint16_t bits = dtype == DType::kF16 ? kernels::FloatToFloat16(value) : kernels::FloatToBFloat16(value);
      std::memcpy(row + c * 2, &bits, 2);
    }
  }

  void Advance(int64_t num_bytes) {
    done_bytes_ += num_bytes;
    constexpr int64_t kStep = int64_t{16} << 20;
    if (progress_ != nullptr &&
        (done_bytes_ / kStep != (done_bytes_ - num_bytes) / kStep || done_bytes_ == total_bytes_)) {
      progress_(done_bytes_, total_bytes_);
    }
  }

  const RandomCheckpoint& checkpoint_;
  const worker::ModelConfig& config_;
  const std::string directory_;
  const NormalPool pool_;
  std::vector<Tensor> tensors_;
  std::vector<float> scales_;
  std::function<void(int64_t, int64_t)> progress_;
  int64_t done_bytes_ = 0, total_bytes_ = 0;
};

}  // namespace

absl::Status WriteRandomCheckpoint(const RandomCheckpoint& checkpoint, const std::string& directory,
                                   const std::function<void(int64_t, int64_t)>& progress) {
  namespace fs = std::filesystem;
  if (checkpoint.dtype != DType::kBF16 && checkpoint.dtype != DType::kF16 && checkpoint.dtype != DType::kF32) {
    return absl::InvalidArgumentError("dtype is BF16, F16 or F32; FP8 comes with a quantization_config");
  }
  const absl::StatusOr<worker::ModelConfig> config =
      worker::ParseModelConfig(checkpoint.config_json, "", "the random checkpoint's config");
  if (!config.ok()) return config.status();
  std::error_code error;
  if (fs::exists(directory, error)) {
    return absl::AlreadyExistsError(absl::StrCat(directory, " exists; remove it to have it written again"));
  }
  const std::string partial = directory + ".partial";
  fs::remove_all(partial, error);
  if (!fs::create_directories(partial, error)) {
    return absl::InternalError(absl::StrCat("cannot make the directory ", partial, ": ", error.message()));
  }
  if (absl::Status status = Writer(checkpoint, *config, partial).Write(progress); !status.ok()) {
    fs::remove_all(partial, error);
    return status;
  }
  fs::rename(partial, directory, error);
  if (error) return absl::InternalError(absl::StrCat("cannot rename ", partial, ": ", error.message()));
  return absl::OkStatus();
}

}  // namespace weir::tools
