#include "tests/worker/tiny_models.h"

#include <map>
#include <memory>
#include <mutex>

#include "kernels/check.h"
#include "tests/worker/checkpoint_writer.h"

namespace weir::worker {
namespace {

struct Model {
  TestDirectory directory;
  std::unique_ptr<Checkpoint> checkpoint;
};

CheckpointWriter WriterOf(const std::string& name) {
  if (name == "v3" || name == "v3_nan") return CheckpointWriter(TinyV3Config());
  if (name == "v3_f32") return CheckpointWriter(TinyV3Config(), kernels::DType::kF32);
  if (name == "v3_fp8") return CheckpointWriter(TinyV3Fp8Config());
  if (name == "v2") return CheckpointWriter(TinyV2Config());
  WEIR_CHECK(name == "v2_lite", name);
  return CheckpointWriter(TinyV2LiteConfig());
}

void PutNan(CheckpointWriter& writer) {
  WrittenTensor& embedding = writer.Find("model.embed_tokens.weight");
  const int64_t row_bytes = embedding.shape[1] * 2;  // BF16
  for (int64_t i = 0; i < row_bytes; i += 2) {
    embedding.bytes[kNanToken * row_bytes + i] = '\xc0';
    embedding.bytes[kNanToken * row_bytes + i + 1] = '\x7f';
  }
}

}  // namespace

const Checkpoint& TinyModel(const std::string& name) {
  static std::mutex mutex;
  static std::map<std::string, Model> models;
  const std::lock_guard lock(mutex);
  Model& model = models[name];
  if (model.checkpoint == nullptr) {
    CheckpointWriter writer = WriterOf(name);
    if (name == "v3_nan") PutNan(writer);
    writer.Shard(2);
    writer.Write(model.directory.path());
    absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(model.directory.path());
    WEIR_CHECK(checkpoint.ok(), std::string(checkpoint.status().message()));
    model.checkpoint = *std::move(checkpoint);
  }
  return *model.checkpoint;
}

}  // namespace weir::worker
