#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"
#include "worker/checkpoint/tensor_table.h"

// A HuggingFace model directory, opened by mmap: config.json, generation_config.json, and model.safetensors or sharded
// files with model.safetensors.index.json.  Opening reads headers only, and checks everything that can be checked
// without touching tensor data: every tensor of the table is there, once, with its shape and an allowed dtype, and
// nothing else is ("extra" tensors are errors too, except rotary inv_freq buffers).  MTP layers may be missing as a
// whole, since base decoding does not need them; config().num_nextn_predict_layers is 0 then.  Every error names file,
// tensor, expected and found.  Immutable after Open; may be read from several threads.

namespace weir::worker {

struct TensorInfo {
  std::string name;
  kernels::DType dtype = kernels::DType::kF32;
  std::vector<int64_t> shape;
  int64_t num_bytes = 0;
  int32_t file = 0;            // index into Checkpoint::files()
  int64_t file_offset = 0;     // of its first byte
  const void* data = nullptr;  // mapped; may be unaligned; null when the file ends before the tensor does
};

class ModelDirectory;

class Checkpoint {
 public:
  struct Options {
    // False: header-only directories (tests, `inspect` before a download ends) may have files shorter than their
    // headers say.
    bool needs_data = true;
  };
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory, const Options& options);
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory) {
    return Open(directory, Options{});
  }
  ~Checkpoint();

  const std::string& directory() const { return directory_; }
  const ModelConfig& config() const { return config_; }
  const std::vector<std::string>& files() const { return files_; }  // paths
  const std::vector<TensorSpec>& table() const { return table_; }
  const TensorInfo& tensor(std::string_view name) const;      // CHECKs that it is there
  const TensorInfo* FindTensor(std::string_view name) const;  // nullptr if not
  // The scales of an FP8 tensor; nullptr when it is stored in another dtype.
  const TensorInfo* ScalesOf(const TensorSpec& spec) const;
  int64_t num_tensors() const { return static_cast<int64_t>(tensors_.size()); }  // scales included

  // The part of a tensor that a rank keeps, as the kernels want it: pointing into the mapping, with scales when FP8
  // (copied, and kept by this object, when they are not aligned in the file).  CHECKs that spec is of this checkpoint's
  // table and that the file holds the data.  Scales are not yet looked at: CheckScales does.
  kernels::HostMatrix Part(const TensorSpec& spec, const TensorPart& part) const;

  // INVALID_ARGUMENT for NaN, infinite or non-positive scales among those that `part` needs.
  absl::Status CheckScales(const TensorSpec& spec, const TensorPart& part) const;

  // Reads bytes of files()[file] past the mapping: what goes wrong with a disk is an error here and not a signal.
  absl::Status Read(int32_t file, int64_t offset, std::span<char> out) const;

  // A hash over config.json and every tensor's name, dtype, shape and place: two ranks with equal hashes opened the
  // same model. Not over the data (that would read 600 GB).
  uint64_t manifest_hash() const { return manifest_hash_; }

 private:
  struct Mapping;
  struct AlignedScales;
  Checkpoint();
  absl::Status ReadConfig(const ModelDirectory& directory);
  absl::Status ReadFiles(const ModelDirectory& directory, const Options& options);
  absl::Status ReadHeader(const ModelDirectory& directory, const std::string& name, const Options& options);
  absl::Status SortTensors();
  absl::Status CheckTensors();
  void HashManifest();
  const float* AlignedScalesOf(const TensorInfo& scales, const TensorPart& part) const;

  std::string directory_;
  ModelConfig config_;
  std::vector<std::string> files_;
  std::vector<TensorSpec> table_;
  std::vector<TensorInfo> tensors_;                 // sorted by name
  std::vector<std::unique_ptr<Mapping>> mappings_;  // one a file
  std::unique_ptr<AlignedScales> aligned_scales_;
  uint64_t manifest_hash_ = 0;
};

// Reads ahead the parts a rank needs and not a byte beside them, by several threads (0 = as many as serve a disk well),
// so that packing finds them in the page cache; calls `progress` (may be null) with bytes done and total, from the
// calling thread, at least every 100 ms and once at the end.  An error names the file.
absl::Status ReadParts(const Checkpoint& checkpoint, const ParallelLayout& layout, const ExpertMap& experts,
                       int num_threads, const std::function<void(int64_t, int64_t)>& progress);

// ---- sums, before anything is loaded ----

struct ByteSums {
  int64_t embedding = 0, head = 0, norms = 0, attention = 0, dense_ffn = 0, routers = 0, shared_experts = 0;
  int64_t routed_experts = 0, mtp = 0;
  int64_t scales = 0;  // of all groups but MTP; the groups above are without them
  int64_t total() const;
};
struct CheckpointSummary {
  int64_t num_parameters = 0;         // without MTP and scales
  int64_t num_active_parameters = 0;  // per token: experts counted num_experts_per_tok times, embedding left out
  int64_t num_mtp_parameters = 0;     // without its duplicates of embedding and head
  int64_t mtp_duplicate_bytes = 0;
  ByteSums bytes;                                               // as stored
  std::vector<std::pair<std::string, int64_t>> bytes_by_dtype;  // "F8_E4M3" -> bytes, descending
  int64_t kv_bytes_per_token = 0;                               // BF16 latents, all layers
};
CheckpointSummary Summarize(const Checkpoint& checkpoint);
// Bytes as stored that one rank keeps.
ByteSums RankBytes(const Checkpoint& checkpoint, const ParallelLayout& layout, const ExpertMap& experts);

}  // namespace weir::worker
