#include "worker/checkpoint/checkpoint.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/check.h"
#include "worker/checkpoint/index_file.h"
#include "worker/checkpoint/json.h"
#include "worker/checkpoint/model_directory.h"
#include "worker/checkpoint/safetensors.h"
#include "worker/checkpoint/scale_blocks.h"
#include "worker/checkpoint/unreadable_files.h"

namespace weir::worker {
namespace {

using kernels::DType;

constexpr int64_t kMaxConfigBytes = 16 << 20;
constexpr int64_t kMaxIndexBytes = 256 << 20;
constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr char kSingleName[] = "model.safetensors";
constexpr char kScaleSuffix[] = "_scale_inv";

absl::Status InvalidTensor(const std::string& file, std::string_view tensor, const std::string& problem) {
  return absl::InvalidArgumentError(absl::StrFormat("%s: tensor %s: %s", file, Quoted(tensor), problem));
}

std::string ShapeAndDType(const std::vector<int64_t>& shape, std::string_view dtype) {
  return absl::StrFormat("%s %s", dtype, ShapeString(shape));
}

std::vector<int64_t> ScaleShape(const std::vector<int64_t>& shape) {
  return {NumScaleBlocks(shape[0]), NumScaleBlocks(shape[1])};
}

// Buffers of old exports: derived from the config, so nothing is lost with them.
bool MayBeIgnored(std::string_view name) { return name.ends_with("rotary_emb.inv_freq"); }

uint64_t Fnv1a(uint64_t hash, std::string_view bytes) {
  for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3ULL;
  return hash;
}

// Every tensor stands in the file that the index gives it, and no other tensor stands in the files.
absl::Status CheckIndex(const IndexFile& index, const std::string& origin, const std::vector<TensorInfo>& tensors,
                        const std::vector<std::string>& files) {
  std::map<std::string_view, int32_t> file_of_tensor(index.file_of_tensor.begin(), index.file_of_tensor.end());
  for (const TensorInfo& tensor : tensors) {
    const auto indexed = file_of_tensor.find(tensor.name);
    if (indexed == file_of_tensor.end()) {
      return InvalidTensor(files[tensor.file], tensor.name,
                           absl::StrFormat("expected an entry in %s, found none", origin));
    }
    if (indexed->second != tensor.file) {
      return InvalidTensor(
          files[tensor.file], tensor.name,
          absl::StrFormat("expected in %s, where %s puts it, found here", files[indexed->second], origin));
    }
    file_of_tensor.erase(indexed);
  }
  if (file_of_tensor.empty()) return absl::OkStatus();
  const auto& [name, file] = *file_of_tensor.begin();
  return InvalidTensor(files[file], name, absl::StrFormat("expected here by %s, found no such tensor", origin));
}

}  // namespace

struct Checkpoint::Mapping {
  ~Mapping() {
    if (address == nullptr) return;
    ForgetMapping(address);
    munmap(address, file->num_bytes());
  }
  std::unique_ptr<ModelFile> file;
  void* address = nullptr;
};

// Copies of scales that do not lie on a multiple of four bytes, one a part, so that nothing is read that the part does
// not need.
struct Checkpoint::AlignedScales {
  using Key = std::tuple<const TensorInfo*, int64_t, int64_t, int64_t, int64_t>;
  std::mutex mutex;
  std::map<Key, std::vector<float>> copies;
};

Checkpoint::Checkpoint() : aligned_scales_(std::make_unique<AlignedScales>()) {}
Checkpoint::~Checkpoint() = default;

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path, const Options& options) {
  absl::StatusOr<std::unique_ptr<ModelDirectory>> directory = ModelDirectory::Open(path);
  if (!directory.ok()) return directory.status();
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint);
  checkpoint->directory_ = (*directory)->path();
  absl::Status status = checkpoint->ReadConfig(**directory);
  if (status.ok()) status = checkpoint->ReadFiles(**directory, options);
  if (status.ok()) status = checkpoint->CheckTensors();
  if (!status.ok()) return status;
  return checkpoint;
}

absl::Status Checkpoint::ReadConfig(const ModelDirectory& directory) {
  const absl::StatusOr<std::string> config_json = directory.ReadText("config.json", kMaxConfigBytes);
  if (!config_json.ok()) return config_json.status();
  std::string generation_json;
  if (directory.Has("generation_config.json")) {
    absl::StatusOr<std::string> text = directory.ReadText("generation_config.json", kMaxConfigBytes);
    if (!text.ok()) return text.status();
    generation_json = text->empty() ? " " : *std::move(text);  // an empty file is malformed, not absent
  }
  absl::StatusOr<ModelConfig> config =
      ParseModelConfig(*config_json, generation_json, absl::StrCat(directory_, "/config.json"));
  if (!config.ok()) return config.status();
  config_ = *std::move(config);
  manifest_hash_ = Fnv1a(0xcbf29ce484222325ULL, *config_json);
  return absl::OkStatus();
}

absl::Status Checkpoint::ReadFiles(const ModelDirectory& directory, const Options& options) {
  const bool has_single = directory.Has(kSingleName);
  IndexFile index;
  const std::string index_path = absl::StrCat(directory_, "/", kIndexName);
  const bool has_index = directory.Has(kIndexName);
  if (has_index) {
    const absl::StatusOr<std::string> text = directory.ReadText(kIndexName, kMaxIndexBytes);
    if (!text.ok()) return text.status();
    absl::StatusOr<IndexFile> parsed = ParseIndexFile(*text, index_path);
    if (!parsed.ok()) return parsed.status();
    index = *std::move(parsed);
    if (has_single && !std::binary_search(index.files.begin(), index.files.end(), kSingleName)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: expected one model, found two: %s and the files of %s; remove one", directory_,
                          kSingleName, kIndexName));
    }
  } else if (has_single) {
    index.files = {kSingleName};
  } else {
    return absl::NotFoundError(
        absl::StrFormat("%s: expected %s or %s, found neither", directory_, kSingleName, kIndexName));
  }
  for (const std::string& name : index.files) {
    if (has_index && !directory.Has(name)) {
      return absl::NotFoundError(absl::StrFormat("%s: weight_map: expected the file %s in the directory, found none",
                                                 index_path, Quoted(name)));
    }
    if (absl::Status status = ReadHeader(directory, name, options); !status.ok()) return status;
  }
  if (absl::Status status = SortTensors(); !status.ok()) return status;
  return has_index ? CheckIndex(index, index_path, tensors_, files_) : absl::OkStatus();
}

absl::Status Checkpoint::ReadHeader(const ModelDirectory& directory, const std::string& name, const Options& options) {
  absl::StatusOr<std::unique_ptr<ModelFile>> opened = directory.OpenFile(name);
  if (!opened.ok()) return opened.status();
  auto mapping = std::make_unique<Mapping>();
  mapping->file = *std::move(opened);
  const ModelFile& file = *mapping->file;
  file.ReadExactly();

  std::array<char, kSafetensorsPrefixBytes> prefix;
  const int64_t prefix_bytes = std::min(file.num_bytes(), kSafetensorsPrefixBytes);
  absl::Status status = file.Read(0, std::span(prefix).first(prefix_bytes));
  if (!status.ok()) return status;
  const absl::StatusOr<int64_t> header_bytes =
      ParseSafetensorsPrefix(std::string_view(prefix.data(), prefix_bytes), file.num_bytes(), file.path());
  if (!header_bytes.ok()) return header_bytes.status();
  std::string header(*header_bytes, '\0');
  status = file.Read(kSafetensorsPrefixBytes, header);
  if (!status.ok()) return status;
  absl::StatusOr<std::vector<SafetensorsEntry>> entries =
      ParseSafetensorsHeader(header, file.num_bytes(), options.needs_data, file.path());
  if (!entries.ok()) return entries.status();

  void* address = mmap(nullptr, file.num_bytes(), PROT_READ, MAP_SHARED, file.descriptor(), 0);
  if (address == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, absl::StrFormat("%s: cannot map %d bytes", file.path(), file.num_bytes()));
  }
  mapping->address = address;
  NoteMapping(address, file.num_bytes(), file.path().c_str());
  madvise(address, file.num_bytes(), MADV_RANDOM);  // a fault must not read ahead into another rank's shard
  for (SafetensorsEntry& entry : *entries) {
    TensorInfo tensor{std::move(entry.name),
                      entry.dtype,
                      std::move(entry.shape),
                      entry.end - entry.begin,
                      static_cast<int32_t>(files_.size()),
                      entry.begin};
    if (entry.end <= file.num_bytes()) tensor.data = static_cast<const char*>(address) + entry.begin;
    tensors_.push_back(std::move(tensor));
  }
  files_.push_back(file.path());
  mappings_.push_back(std::move(mapping));
  return absl::OkStatus();
}

absl::Status Checkpoint::SortTensors() {
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.name, a.file) < std::tie(b.name, b.file);
  });
  const auto twin = std::adjacent_find(tensors_.begin(), tensors_.end(),
                                       [](const TensorInfo& a, const TensorInfo& b) { return a.name == b.name; });
  if (twin == tensors_.end()) return absl::OkStatus();
  return InvalidTensor(files_[twin[1].file], twin->name,
                       absl::StrFormat("expected once, found in %s too", files_[twin->file]));
}

namespace {

// What the table says of one tensor, against what the files hold.
absl::Status CheckTensor(const Checkpoint& checkpoint, const TensorSpec& spec, const TensorInfo& tensor) {
  const std::string& file = checkpoint.files()[tensor.file];
  const bool is_fp8 = tensor.dtype == DType::kF8E4M3;
  if (tensor.shape != spec.shape) {
    return InvalidTensor(file, spec.name,
                         absl::StrFormat("expected shape %s, which config.json gives, found %s",
                                         ShapeString(spec.shape), ShapeString(tensor.shape)));
  }
  if (!is_fp8) return absl::OkStatus();
  if (!spec.may_be_fp8) return InvalidTensor(file, spec.name, "expected dtype BF16, F16 or F32, found F8_E4M3");
  if (!checkpoint.config().fp8) {
    return InvalidTensor(
        file, spec.name,
        "expected dtype BF16, F16 or F32, since config.json has no quantization_config, found F8_E4M3");
  }
  const std::vector<int64_t> scale_shape = ScaleShape(spec.shape);
  const TensorInfo* scales = checkpoint.FindTensor(spec.name + kScaleSuffix);
  if (scales == nullptr) {
    return InvalidTensor(checkpoint.directory(), spec.name + kScaleSuffix,
                         absl::StrFormat("expected %s, the scales of an F8_E4M3 tensor, found no such tensor",
                                         ShapeAndDType(scale_shape, "F32")));
  }
  if (scales->dtype != DType::kF32 || scales->shape != scale_shape) {
    return InvalidTensor(checkpoint.files()[scales->file], scales->name,
                         absl::StrFormat("expected %s, found %s", ShapeAndDType(scale_shape, "F32"),
                                         ShapeAndDType(scales->shape, kernels::Name(scales->dtype))));
  }
  return absl::OkStatus();
}

// Why a tensor of a file is in no table.
std::string ExtraTensorProblem(const Checkpoint& checkpoint, const std::string& name,
                               const std::set<std::string>& expected) {
  if (std::string_view(name).ends_with(kScaleSuffix)) {
    const std::string weight = name.substr(0, name.size() - std::strlen(kScaleSuffix));
    if (expected.contains(weight)) return absl::StrFormat("expected no scales, since %s is not F8_E4M3", weight);
  }
  const std::string mtp_prefix = absl::StrFormat("model.layers.%d.", checkpoint.config().num_hidden_layers);
  if (checkpoint.config().num_nextn_predict_layers == 0 && name.starts_with(mtp_prefix)) {
    return "expected no MTP layer, since config.json has no num_nextn_predict_layers, found this tensor of one";
  }
  return absl::StrFormat("expected no such tensor in a %s of config.json's sizes, found one",
                         checkpoint.config().architecture);
}

}  // namespace

absl::Status Checkpoint::CheckTensors() {
  std::erase_if(tensors_, [](const TensorInfo& tensor) { return MayBeIgnored(tensor.name); });
  const auto is_mtp = [&](const TensorInfo& tensor) {
    return tensor.name.starts_with(absl::StrFormat("model.layers.%d.", config_.num_hidden_layers));
  };
  if (std::none_of(tensors_.begin(), tensors_.end(), is_mtp)) config_.num_nextn_predict_layers = 0;
  table_ = TensorTable(config_);

  std::set<std::string> expected;
  int64_t num_missing = 0;
  const TensorSpec* first_missing = nullptr;
  for (const TensorSpec& spec : table_) {
    const TensorInfo* tensor = FindTensor(spec.name);
    if (tensor == nullptr) {
      if (num_missing++ == 0) first_missing = &spec;
      continue;
    }
    if (absl::Status status = CheckTensor(*this, spec, *tensor); !status.ok()) return status;
    expected.insert(spec.name);
    if (tensor->dtype == DType::kF8E4M3) expected.insert(spec.name + kScaleSuffix);
  }
  for (const TensorInfo& tensor : tensors_) {
    if (expected.contains(tensor.name)) continue;
    return InvalidTensor(files_[tensor.file], tensor.name, ExtraTensorProblem(*this, tensor.name, expected));
  }
  if (num_missing > 0) {
    return InvalidTensor(directory_, first_missing->name,
                         absl::StrFormat("expected shape %s, found no such tensor in %d %s (%d of %d are missing)",
                                         ShapeString(first_missing->shape), files_.size(),
                                         files_.size() == 1 ? "file" : "files", num_missing, table_.size()));
  }
  HashManifest();
  return absl::OkStatus();
}

void Checkpoint::HashManifest() {
  for (const TensorInfo& tensor : tensors_) {
    const std::string& file = files_[tensor.file];
    manifest_hash_ = Fnv1a(manifest_hash_, absl::StrFormat("%s|%s|%s|%s|%d\n", tensor.name, kernels::Name(tensor.dtype),
                                                           ShapeString(tensor.shape), file.substr(file.rfind('/') + 1),
                                                           tensor.file_offset));
  }
}

const TensorInfo* Checkpoint::FindTensor(std::string_view name) const {
  const auto found = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                      [](const TensorInfo& tensor, std::string_view n) { return tensor.name < n; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

const TensorInfo& Checkpoint::tensor(std::string_view name) const {
  const TensorInfo* found = FindTensor(name);
  WEIR_CHECK(found != nullptr, std::string(name));
  return *found;
}

const TensorInfo* Checkpoint::ScalesOf(const TensorSpec& spec) const {
  return tensor(spec.name).dtype == DType::kF8E4M3 ? &tensor(spec.name + kScaleSuffix) : nullptr;
}

absl::Status Checkpoint::Read(int32_t file, int64_t offset, std::span<char> out) const {
  return mappings_[file]->file->Read(offset, out);
}

kernels::HostMatrix Checkpoint::Part(const TensorSpec& spec, const TensorPart& part) const {
  const TensorInfo& whole = tensor(spec.name);
  const bool is_vector = whole.shape.size() == 1;
  const int64_t num_rows = is_vector ? 1 : whole.shape[0];
  const int64_t num_cols = is_vector ? whole.shape[0] : whole.shape[1];
  WEIR_CHECK(whole.shape == spec.shape, spec.name);
  WEIR_CHECK(part.first_row >= 0 && part.rows >= 0 && part.first_row + part.rows <= num_rows, spec.name);
  WEIR_CHECK(part.first_col >= 0 && part.cols >= 0 && part.first_col + part.cols <= num_cols, spec.name);
  WEIR_CHECK(whole.data != nullptr, spec.name + ": opened without its data");

  kernels::HostMatrix matrix;
  matrix.data = static_cast<const char*>(whole.data) +
                (part.first_row * num_cols + part.first_col) * kernels::SizeOf(whole.dtype);
  matrix.dtype = whole.dtype;
  matrix.rows = part.rows;
  matrix.cols = part.cols;
  matrix.row_stride = num_cols;
  matrix.first_row = part.first_row;
  matrix.first_col = part.first_col;
  if (const TensorInfo* scales = ScalesOf(spec); scales != nullptr) {
    matrix.scales = AlignedScalesOf(*scales, part);
    matrix.scales_stride = scales->shape[1];
  }
  return matrix;
}

const float* Checkpoint::AlignedScalesOf(const TensorInfo& scales, const TensorPart& part) const {
  WEIR_CHECK(scales.data != nullptr, scales.name + ": opened without its data");
  if (reinterpret_cast<uintptr_t>(scales.data) % alignof(float) == 0) return static_cast<const float*>(scales.data);
  const std::lock_guard lock(aligned_scales_->mutex);
  std::vector<float>& copy = aligned_scales_->copies[{&scales, part.first_row, part.rows, part.first_col, part.cols}];
  if (copy.empty()) {
    // NaN outside the part: a kernel that looks there shows it.
    copy.assign(scales.shape[0] * scales.shape[1], std::numeric_limits<float>::quiet_NaN());
    const ScaleBlocks blocks = ScaleBlocksOf(part);
    for (int64_t row = blocks.first_row; row < blocks.first_row + blocks.rows; ++row) {
      const int64_t first = row * scales.shape[1] + blocks.first_col;
      std::memcpy(&copy[first], static_cast<const char*>(scales.data) + first * sizeof(float),
                  blocks.cols * sizeof(float));
    }
  }
  return copy.data();
}

absl::Status Checkpoint::CheckScales(const TensorSpec& spec, const TensorPart& part) const {
  const TensorInfo* scales = ScalesOf(spec);
  if (scales == nullptr) return absl::OkStatus();
  WEIR_CHECK(scales->data != nullptr, scales->name + ": opened without its data");
  const ScaleBlocks blocks = ScaleBlocksOf(part);
  for (int64_t row = blocks.first_row; row < blocks.first_row + blocks.rows; ++row) {
    for (int64_t col = blocks.first_col; col < blocks.first_col + blocks.cols; ++col) {
      float scale = 0.0f;
      const int64_t index = row * scales->shape[1] + col;
      std::memcpy(&scale, static_cast<const char*>(scales->data) + index * sizeof(float), sizeof(float));
      if (std::isfinite(scale) && scale > 0.0f) continue;
      return InvalidTensor(
          files_[scales->file], scales->name,
          absl::StrFormat("block [%d, %d]: expected a finite scale above zero, found %g", row, col, scale));
    }
  }
  return absl::OkStatus();
}

}  // namespace weir::worker
