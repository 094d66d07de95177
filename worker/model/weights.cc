#include "worker/model/weights.h"

#include <cmath>
#include <functional>
#include <future>
#include <string>
#include <thread>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/model/widen.h"

namespace weir::worker {
namespace {

using kernels::DType;
using kernels::HostMatrix;
using kernels::TensorView;

// Reads ahead in threads of its own from construction to destruction.
class ReadAhead {
 public:
  ReadAhead(const Checkpoint& checkpoint, const ParallelLayout& layout, const ExpertMap& experts)
      : thread_([&checkpoint, layout, &experts, this] {
          status_ = ReadParts(checkpoint, layout, experts, /*num_threads=*/0, /*progress=*/nullptr);
        }) {}
  ~ReadAhead() {
    if (thread_.joinable()) thread_.join();
  }
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  absl::Status Join() {
    thread_.join();
    return status_;
  }

 private:
  absl::Status status_;
  std::thread thread_;
};

// Finds, widens and packs tensors by name.  Keeps the first error; after it, everything it returns is empty.
class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const ParallelLayout& layout, const ExpertMap& experts, WeightDType weight_dtype,
         kernels::Backend* backend, const std::function<void(int64_t, int64_t)>& progress)
      : checkpoint_(checkpoint),
        layout_(layout),
        experts_(experts),
        weight_dtype_(weight_dtype),
        format_(checkpoint.config().fp8 ? checkpoint.config().fp8->scale_format : kernels::ScaleFormat::kF32),
        backend_(backend),
        progress_(progress) {
    for (const TensorSpec& spec : checkpoint.table()) {
      specs_.emplace(spec.name, &spec);
      bytes_total_ += StoredBytes(spec);
    }
  }

  const absl::Status& status() const { return status_; }
  std::vector<kernels::DeviceBuffer> TakeBuffers() { return std::move(buffers_); }

  std::unique_ptr<kernels::LinearWeight> Linear(const std::string& name) {
    const Widened matrix = Read(name);
    if (!status_.ok()) return nullptr;
    return Keep(name, backend_->PackLinear(matrix.view(), format_));
  }

  // One tensor for both forms of attention.
  void KvB(const std::string& name, const kernels::MlaShape& shape, LayerWeights& layer) {
    const Widened matrix = Read(name);
    if (!status_.ok()) return;
    layer.kv_b_proj = Keep(name, backend_->PackLinear(matrix.view(), format_));
    layer.kv_b_absorbed = Keep(name, backend_->PackAbsorbed(matrix.view(), shape));
  }

  // The router runs in f32 on activations that are not rounded, whatever its weight is stored as (spec 2.7).
  std::unique_ptr<kernels::LinearWeight> Router(const std::string& name) {
    const std::vector<float> values = Values(name);
    if (!status_.ok()) return nullptr;
    const std::vector<int64_t>& shape = specs_.at(name)->shape;
    return Keep(
        name,
        backend_->PackLinear(
            {.data = values.data(), .dtype = DType::kF32, .rows = shape[0], .cols = shape[1], .row_stride = shape[1]},
            format_));
  }

  std::unique_ptr<kernels::MlpWeight> Mlp(const std::string& prefix) {
    const WidenedMlp mlp = ReadMlp(prefix);
    if (!status_.ok()) return nullptr;
    return Keep(prefix, backend_->PackMlp(mlp.view(), format_));
  }

  std::unique_ptr<kernels::ExpertsWeight> Experts(const std::string& prefix) {
    const std::vector<int32_t>& ids = experts_.ExpertsOn(layout_.rank);
    std::vector<WidenedMlp> widened;
    std::vector<kernels::HostMlp> views;
    for (const int32_t id : ids) {
      widened.push_back(ReadMlp(absl::StrCat(prefix, id)));
      if (!status_.ok()) return nullptr;
    }
    for (const WidenedMlp& mlp : widened) views.push_back(mlp.view());
    return Keep(prefix, backend_->PackExperts(views, ids, format_));
  }

  // A vector of f32 on the device, [1, n].
  TensorView Vector(const std::string& name) {
    const std::vector<float> values = Values(name);
    return ToDevice(values.data(), DType::kF32, 1, static_cast<int64_t>(values.size()));
  }

  TensorView Table(const std::string& name) {
    const Widened matrix = Read(name);
    if (!status_.ok()) return {};
    const HostMatrix& view = matrix.view();
    WEIR_CHECK(view.row_stride == view.cols, name);  // a table is split by rows only
    return ToDevice(view.data, view.dtype, view.rows, view.cols);
  }

  TensorView ToDevice(const void* data, DType dtype, int64_t rows, int64_t cols) {
    if (!status_.ok()) return {};
    absl::StatusOr<kernels::DeviceBuffer> buffer = backend_->Allocate(rows * cols * kernels::SizeOf(dtype));
    if (!Ok(buffer.status())) return {};
    const TensorView view = buffer->View(dtype, rows, cols);
    backend_->CopyToDevice(view, data);
    Ok(backend_->Synchronize());  // `data` may go after this
    buffers_.push_back(*std::move(buffer));
    return view;
  }

  bool Has(const std::string& name) const { return specs_.contains(name); }
  int64_t FirstRow(const std::string& name) const { return Part(*specs_.at(name)).first_row; }

 private:
  struct WidenedMlp {
    Widened gate, up, down;
    kernels::HostMlp view() const { return {.gate = gate.view(), .up = up.view(), .down = down.view()}; }
  };

  TensorPart Part(const TensorSpec& spec) const { return PartOf(spec, layout_, experts_); }

  int64_t StoredBytes(const TensorSpec& spec) const {
    const TensorPart part = Part(spec);
    return part.rows * part.cols * kernels::SizeOf(checkpoint_.tensor(spec.name).dtype);
  }

  // This rank's part of a tensor in the dtype it runs in.
  Widened Read(const std::string& name) {
    if (!status_.ok()) return {};
    const auto it = specs_.find(name);
    WEIR_CHECK(it != specs_.end(), name);
    const TensorSpec& spec = *it->second;
    const HostMatrix stored = checkpoint_.Part(spec, Part(spec));
    if (stored.dtype == DType::kF8E4M3 && !Ok(checkpoint_.CheckScales(spec, Part(spec)))) return {};
    Widened widened(stored, RunDType(stored.dtype, weight_dtype_));
    CountProgress(StoredBytes(spec));
    return widened;
  }

  WidenedMlp ReadMlp(const std::string& prefix) {
    return {Read(prefix + ".gate_proj.weight"), Read(prefix + ".up_proj.weight"), Read(prefix + ".down_proj.weight")};
  }

  // All values of a small tensor as f32; they must be finite.
  std::vector<float> Values(const std::string& name) {
    if (!status_.ok()) return {};
    const TensorSpec& spec = *specs_.at(name);
    const Widened widened(checkpoint_.Part(spec, Part(spec)), DType::kF32);
    std::vector<float> values = widened.Floats();
    for (size_t i = 0; i < values.size(); ++i) {
      if (!std::isfinite(values[i])) {
        Ok(absl::InvalidArgumentError(absl::StrCat(checkpoint_.files()[checkpoint_.tensor(name).file], ": tensor ",
                                                   name, ": element ", i, " is ", values[i],
                                                   "; expected a finite number (download the file again)")));
        return {};
      }
    }
    CountProgress(StoredBytes(spec));
    return values;
  }

  template <typename Weight>
  std::unique_ptr<Weight> Keep(const std::string& name, absl::StatusOr<std::unique_ptr<Weight>> packed) {
    if (packed.ok()) return *std::move(packed);
    Ok(absl::Status(packed.status().code(),
                    absl::StrCat(checkpoint_.directory(), ": tensor ", name, ": ", packed.status().message())));
    return nullptr;
  }

  bool Ok(const absl::Status& status) {
    status_.Update(status);
    return status_.ok();
  }

  void CountProgress(int64_t num_bytes) {
    bytes_done_ += num_bytes;
    if (progress_) progress_(bytes_done_, bytes_total_);
  }

  const Checkpoint& checkpoint_;
  const ParallelLayout layout_;
  const ExpertMap& experts_;
  const WeightDType weight_dtype_;
  const kernels::ScaleFormat format_;
  kernels::Backend* backend_;
  const std::function<void(int64_t, int64_t)>& progress_;
  absl::flat_hash_map<std::string, const TensorSpec*> specs_;
  std::vector<kernels::DeviceBuffer> buffers_;
  int64_t bytes_done_ = 0;
  int64_t bytes_total_ = 0;
  absl::Status status_;
};

void LoadAttention(Loader& loader, const std::string& prefix, const ModelConfig& config, const kernels::MlaShape& shape,
                   LayerWeights& layer) {
  if (config.q_lora_rank > 0) {
    layer.q_a_proj = loader.Linear(prefix + "q_a_proj.weight");
    layer.q_a_layernorm = loader.Vector(prefix + "q_a_layernorm.weight");
    layer.q_b_proj = loader.Linear(prefix + "q_b_proj.weight");
  } else {
    layer.q_proj = loader.Linear(prefix + "q_proj.weight");
  }
  layer.kv_a_proj_with_mqa = loader.Linear(prefix + "kv_a_proj_with_mqa.weight");
  layer.kv_a_layernorm = loader.Vector(prefix + "kv_a_layernorm.weight");
  loader.KvB(prefix + "kv_b_proj.weight", shape, layer);
  layer.o_proj = loader.Linear(prefix + "o_proj.weight");
}

void LoadMoe(Loader& loader, const std::string& prefix, const ModelConfig& config, LayerWeights& layer) {
  layer.gate = loader.Router(prefix + "gate.weight");
  if (const std::string bias = prefix + "gate.e_score_correction_bias"; loader.Has(bias)) {
    layer.e_score_correction_bias = loader.Vector(bias);
  }
  layer.experts = loader.Experts(prefix + "experts.");
  if (config.n_shared_experts > 0) layer.shared_experts = loader.Mlp(prefix + "shared_experts");
}

LayerWeights LoadLayer(Loader& loader, int32_t index, const ModelConfig& config, const kernels::MlaShape& shape) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  LayerWeights layer;
  layer.input_layernorm = loader.Vector(prefix + "input_layernorm.weight");
  LoadAttention(loader, prefix + "self_attn.", config, shape, layer);
  layer.post_attention_layernorm = loader.Vector(prefix + "post_attention_layernorm.weight");
  if (config.IsMoeLayer(index)) {
    LoadMoe(loader, prefix + "mlp.", config, layer);
  } else {
    layer.dense = loader.Mlp(prefix + "mlp");
  }
  return layer;
}

// Angles in double: at position 163,839 an f32 angle is wrong in its third decimal.
std::vector<float> RopeTable(const ModelConfig& config, int64_t num_positions) {
  const std::vector<double> frequencies = config.RopeFrequencies();
  const double amplitude = config.RopeAmplitude();
  std::vector<float> table;
  table.reserve(num_positions * 2 * frequencies.size());
  for (int64_t position = 0; position < num_positions; ++position) {
    for (const double frequency : frequencies) {
      const double angle = static_cast<double>(position) * frequency;
      table.push_back(static_cast<float>(amplitude * std::cos(angle)));
      table.push_back(static_cast<float>(amplitude * std::sin(angle)));
    }
  }
  return table;
}

}  // namespace

kernels::MlaShape RankMlaShape(const ModelConfig& config, const ParallelLayout& layout) {
  return {.num_heads = config.num_attention_heads / layout.tp,
          .kv_lora_rank = config.kv_lora_rank,
          .qk_nope_head_dim = config.qk_nope_head_dim,
          .qk_rope_head_dim = config.qk_rope_head_dim,
          .v_head_dim = config.v_head_dim,
          .softmax_scale = static_cast<float>(config.SoftmaxScale())};
}

int32_t NumMoeLayers(const ModelConfig& config) {
  int32_t count = 0;
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) count += config.IsMoeLayer(layer) ? 1 : 0;
  return count;
}

DType RunDType(DType stored, WeightDType weight_dtype) {
  if (weight_dtype == WeightDType::kFloat32) return DType::kF32;
  if (weight_dtype == WeightDType::kBFloat16 && stored == DType::kF8E4M3) return DType::kBF16;
  return stored;
}

int64_t WeightsBytes(const Checkpoint& checkpoint, const ParallelLayout& layout, const ExpertMap& experts,
                     WeightDType weight_dtype, int64_t max_model_len) {
  const ModelConfig& config = checkpoint.config();
  int64_t num_bytes = max_model_len * config.qk_rope_head_dim * int64_t{sizeof(float)};
  for (const TensorSpec& spec : checkpoint.table()) {
    const TensorPart part = PartOf(spec, layout, experts);
    const int64_t num_elements = part.rows * part.cols;
    const DType stored = checkpoint.tensor(spec.name).dtype;
    const bool is_f32 = spec.group == TensorGroup::kNorm || spec.group == TensorGroup::kRouter;
    const DType run = is_f32 ? DType::kF32 : RunDType(stored, weight_dtype);
    num_bytes += num_elements * kernels::SizeOf(run);
    if (spec.split != TensorSplit::kUnused && spec.name.ends_with(".kv_b_proj.weight")) {  // and once more, absorbed
      num_bytes += num_elements * kernels::SizeOf(run == DType::kF8E4M3 ? DType::kBF16 : run);
    }
  }
  return num_bytes;
}

absl::StatusOr<ModelWeights> LoadWeights(const Checkpoint& checkpoint, const ParallelLayout& layout,
                                         const ExpertMap& experts, WeightDType weight_dtype, int64_t max_model_len,
                                         kernels::Backend* backend,
                                         const std::function<void(int64_t, int64_t)>& progress) {
  const ModelConfig& config = checkpoint.config();
  const kernels::MlaShape shape = RankMlaShape(config, layout);
  ReadAhead read_ahead(checkpoint, layout, experts);
  std::future<std::vector<float>> rope_table =
      std::async(std::launch::async, RopeTable, std::cref(config), max_model_len);
  Loader loader(checkpoint, layout, experts, weight_dtype, backend, progress);

  ModelWeights weights;
  weights.embed_tokens = loader.Table("model.embed_tokens.weight");
  weights.first_token_id = static_cast<int32_t>(loader.FirstRow("model.embed_tokens.weight"));
  for (int32_t index = 0; index < config.num_hidden_layers && loader.status().ok(); ++index) {
    weights.layers.push_back(LoadLayer(loader, index, config, shape));
  }
  weights.norm = loader.Vector("model.norm.weight");
  weights.lm_head = loader.Linear("lm_head.weight");
  weights.rope_table = loader.ToDevice(rope_table.get().data(), DType::kF32, max_model_len, config.qk_rope_head_dim);
  weights.buffers = loader.TakeBuffers();

  absl::Status status = loader.status();
  status.Update(read_ahead.Join());
  if (!status.ok()) return status;
  return weights;
}

}  // namespace weir::worker
