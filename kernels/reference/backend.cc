#include "kernels/backend.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/reference/attention.h"
#include "kernels/reference/linear.h"
#include "kernels/reference/router.h"
#include "kernels/reference/rows.h"

// The specification: every operation is done when its call returns, a row at a time, in double, rounded once at the
// end.  Read it beside the paper; it is not meant to be fast.

namespace weir::kernels::reference {
namespace {

struct PackedLinear final : LinearWeight {
  explicit PackedLinear(Matrix m) : matrix(std::move(m)) {}
  int64_t num_bytes() const override { return matrix.num_bytes(); }
  Matrix matrix;
};

struct PackedMlp final : MlpWeight {
  explicit PackedMlp(SwiGlu m) : mlp(std::move(m)) {}
  int64_t num_bytes() const override { return mlp.num_bytes(); }
  SwiGlu mlp;
};

struct PackedExperts final : ExpertsWeight {
  int64_t num_bytes() const override {
    int64_t sum = 0;
    for (const SwiGlu& expert : experts) sum += expert.num_bytes();
    return sum;
  }
  std::vector<int32_t> ids;  // ascending
  std::vector<SwiGlu> experts;
};

struct PackedAbsorbed final : AbsorbedWeight {
  explicit PackedAbsorbed(Matrix m) : kv_b(std::move(m)) {}
  int64_t num_bytes() const override { return kv_b.num_bytes(); }
  Matrix kv_b;
};

struct Batch final : DeviceBatch {
  std::span<const int32_t> BlockTable(const SequenceRows& sequence) const {
    return std::span(block_tables).subspan(sequence.block_table_begin, sequence.num_blocks);
  }
  std::vector<int32_t> token_ids, positions, block_tables, sample_rows;
  std::vector<int64_t> slot_mapping;
  std::vector<SequenceRows> sequences;
};

template <typename T>
std::vector<T> ToVector(std::span<const T> values) {
  return {values.begin(), values.end()};
}

void CheckSameShape(const TensorView& a, const TensorView& b) {
  WEIR_CHECK(a.rows == b.rows && a.cols == b.cols, "shapes differ");
}

Row Rounded(Row values) {
  RoundToF32(values);
  return values;
}

class ReferenceBackend final : public Backend {
 public:
  std::string_view name() const override { return "reference"; }
  std::string_view detail() const override { return "plain loops in double, 1 thread"; }
  DType activation_dtype() const override { return DType::kF32; }

  absl::StatusOr<DeviceBuffer> Allocate(int64_t num_bytes) override;
  void Free(void* data) override { std::free(data); }
  void CopyToDevice(TensorView destination, const void* source) override;
  void CopyToHost(void* destination, TensorView source) override;
  void Copy(TensorView destination, TensorView source) override;
  void Zero(TensorView destination) override;
  void Prefault(TensorView) override {}
  absl::Status Synchronize() override { return absl::OkStatus(); }

  absl::StatusOr<std::unique_ptr<LinearWeight>> PackLinear(const HostMatrix& weight, ScaleFormat format) override;
  absl::StatusOr<std::unique_ptr<MlpWeight>> PackMlp(const HostMlp& weight, ScaleFormat format) override;
  absl::StatusOr<std::unique_ptr<ExpertsWeight>> PackExperts(std::span<const HostMlp> experts,
                                                             std::span<const int32_t> expert_ids,
                                                             ScaleFormat format) override;
  absl::StatusOr<std::unique_ptr<AbsorbedWeight>> PackAbsorbed(const HostMatrix& kv_b, const MlaShape& shape) override;

  std::unique_ptr<DeviceBatch> NewBatch() override { return std::make_unique<Batch>(); }
  void Upload(DeviceBatch& batch, const BatchLayout& layout) override;

  void Embed(TensorView out, const DeviceBatch& batch, TensorView table, int32_t first_id) override;
  void RmsNorm(TensorView out, TensorView x, TensorView weight, float eps) override;
  void AddRmsNorm(TensorView out, TensorView residual, TensorView delta, TensorView weight, float eps) override;
  void Linear(TensorView out, TensorView x, const LinearWeight& weight) override;
  void Rope(TensorView q, const DeviceBatch& batch, TensorView rope_table, const MlaShape& shape) override;
  void WriteLatent(const LatentCache& cache, TensorView kv_a, TensorView weight, float eps, const DeviceBatch& batch,
                   TensorView rope_table, const MlaShape& shape) override;
  void PromptAttention(TensorView out, TensorView q, const LatentCache& cache, const DeviceBatch& batch,
                       const LinearWeight& kv_b, const MlaShape& shape) override;
  void GeneratedAttention(TensorView out, TensorView q, const LatentCache& cache, const DeviceBatch& batch,
                          const AbsorbedWeight& weight, const MlaShape& shape) override;
  void Route(TensorView expert_ids, TensorView expert_weights, TensorView logits, TensorView bias,
             const RouterShape& shape) override;
  void Mlp(TensorView out, TensorView x, const MlpWeight& weight) override;
  void Experts(TensorView out, TensorView x, TensorView expert_ids, TensorView expert_weights,
               const ExpertsWeight& weight, int64_t* load) override;
  void Add(TensorView a, TensorView b) override;
  void GatherSampleRows(TensorView out, TensorView x, const DeviceBatch& batch) override;
  void Sample(std::span<SampleOutput> outputs, TensorView logits, std::span<const SampleRow> rows) override;
};

const Batch& Unwrap(const DeviceBatch& batch) { return static_cast<const Batch&>(batch); }

// ---- memory ----

absl::StatusOr<DeviceBuffer> ReferenceBackend::Allocate(int64_t num_bytes) {
  WEIR_CHECK(num_bytes >= 0);
  const int64_t machine_bytes = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  void* data = nullptr;
  if (num_bytes <= machine_bytes) {  // an unwritten allocation beyond it would succeed, and kill the process later
    data = std::aligned_alloc(64, (static_cast<size_t>(num_bytes) + 64) / 64 * 64);
  }
  if (data == nullptr) {
    return absl::ResourceExhaustedError("cannot allocate " + std::to_string(num_bytes) + " bytes; the machine has " +
                                        std::to_string(machine_bytes) + " bytes in all");
  }
  return DeviceBuffer(this, data, num_bytes);
}

// Calls move(row's bytes on the device, offset of the row in dense host memory, bytes) for every row.
template <typename Move>
void ForEachRow(const TensorView& view, Move move) {
  const int64_t row_bytes = view.cols * SizeOf(view.dtype);
  for (int64_t r = 0; r < view.rows; ++r) {
    move(static_cast<char*>(view.data) + r * view.row_stride * SizeOf(view.dtype), r * row_bytes,
         static_cast<size_t>(row_bytes));
  }
}

void ReferenceBackend::CopyToDevice(TensorView destination, const void* source) {
  ForEachRow(destination, [&](char* row, int64_t offset, size_t num_bytes) {
    std::memcpy(row, static_cast<const char*>(source) + offset, num_bytes);
  });
}

void ReferenceBackend::CopyToHost(void* destination, TensorView source) {
  ForEachRow(source, [&](char* row, int64_t offset, size_t num_bytes) {
    std::memcpy(static_cast<char*>(destination) + offset, row, num_bytes);
  });
}

void ReferenceBackend::Copy(TensorView destination, TensorView source) {
  CheckSameShape(destination, source);
  WEIR_CHECK(destination.dtype == source.dtype);
  for (int64_t r = 0; r < source.rows; ++r) {
    const TensorView from = source.Rows(r, 1), to = destination.Rows(r, 1);
    std::memmove(to.data, from.data, static_cast<size_t>(source.cols * SizeOf(source.dtype)));
  }
}

void ReferenceBackend::Zero(TensorView destination) {
  ForEachRow(destination, [](char* row, int64_t, size_t num_bytes) { std::memset(row, 0, num_bytes); });
}

// ---- weights ----

absl::StatusOr<std::unique_ptr<LinearWeight>> ReferenceBackend::PackLinear(const HostMatrix& weight,
                                                                           ScaleFormat format) {
  absl::StatusOr<Matrix> matrix = Decode(weight, format);
  if (!matrix.ok()) return matrix.status();
  return std::make_unique<PackedLinear>(*std::move(matrix));
}

absl::StatusOr<std::unique_ptr<MlpWeight>> ReferenceBackend::PackMlp(const HostMlp& weight, ScaleFormat format) {
  absl::StatusOr<SwiGlu> mlp = Decode(weight, format);
  if (!mlp.ok()) return mlp.status();
  return std::make_unique<PackedMlp>(*std::move(mlp));
}

absl::StatusOr<std::unique_ptr<ExpertsWeight>> ReferenceBackend::PackExperts(std::span<const HostMlp> experts,
                                                                             std::span<const int32_t> expert_ids,
                                                                             ScaleFormat format) {
  WEIR_CHECK(experts.size() == expert_ids.size());
  WEIR_CHECK(std::is_sorted(expert_ids.begin(), expert_ids.end(), std::less_equal<>()), "expert ids ascend");
  auto packed = std::make_unique<PackedExperts>();
  packed->ids = ToVector(expert_ids);
  for (const HostMlp& expert : experts) {
    absl::StatusOr<SwiGlu> mlp = Decode(expert, format);
    if (!mlp.ok()) return mlp.status();
    packed->experts.push_back(*std::move(mlp));
  }
  return packed;
}

absl::StatusOr<std::unique_ptr<AbsorbedWeight>> ReferenceBackend::PackAbsorbed(const HostMatrix& kv_b,
                                                                               const MlaShape& shape) {
  WEIR_CHECK(kv_b.rows == int64_t{shape.num_heads} * (shape.qk_nope_head_dim + shape.v_head_dim));
  WEIR_CHECK(kv_b.cols == shape.kv_lora_rank);
  absl::StatusOr<Matrix> matrix = Decode(kv_b, ScaleFormat::kF32);
  if (!matrix.ok()) return matrix.status();
  return std::make_unique<PackedAbsorbed>(Dequantized(*std::move(matrix)));
}

// ---- one step's integers ----

void ReferenceBackend::Upload(DeviceBatch& batch, const BatchLayout& layout) {
  const size_t num_rows = layout.token_ids.size();
  WEIR_CHECK(layout.positions.size() == num_rows && layout.slot_mapping.size() == num_rows);
  WEIR_CHECK(std::is_sorted(layout.sample_rows.begin(), layout.sample_rows.end()));
  Batch& copy = static_cast<Batch&>(batch);
  copy.token_ids = ToVector(layout.token_ids);
  copy.positions = ToVector(layout.positions);
  copy.slot_mapping = ToVector(layout.slot_mapping);
  copy.sequences = ToVector(layout.sequences);
  copy.block_tables = ToVector(layout.block_tables);
  copy.sample_rows = ToVector(layout.sample_rows);
}

// ---- the forward pass, in the order of the paper ----

void ReferenceBackend::Embed(TensorView out, const DeviceBatch& batch, TensorView table, int32_t first_id) {
  const std::vector<int32_t>& token_ids = Unwrap(batch).token_ids;
  WEIR_CHECK(out.rows == static_cast<int64_t>(token_ids.size()) && out.cols == table.cols);
  for (int64_t t = 0; t < out.rows; ++t) {
    const int64_t row = int64_t{token_ids[t]} - first_id;
    const bool is_here = row >= 0 && row < table.rows;
    WriteRow(out, t, is_here ? ReadRow(table, row) : Row(static_cast<size_t>(out.cols)));
  }
}

void ReferenceBackend::RmsNorm(TensorView out, TensorView x, TensorView weight, float eps) {
  CheckSameShape(out, x);
  const Row w = ReadRow(weight, 0);
  for (int64_t t = 0; t < x.rows; ++t) WriteRow(out, t, Normalize(ReadRow(x, t), w, eps));
}

void ReferenceBackend::AddRmsNorm(TensorView out, TensorView residual, TensorView delta, TensorView weight, float eps) {
  Add(residual, delta);
  RmsNorm(out, residual, weight, eps);
}

void ReferenceBackend::Linear(TensorView out, TensorView x, const LinearWeight& weight) {
  const Matrix& matrix = static_cast<const PackedLinear&>(weight).matrix;
  WEIR_CHECK(out.rows == x.rows && out.cols == matrix.rows);
  for (int64_t t = 0; t < x.rows; ++t) WriteRow(out, t, Multiply(matrix, ReadRow(x, t)));
}

void ReferenceBackend::Rope(TensorView q, const DeviceBatch& batch, TensorView rope_table, const MlaShape& shape) {
  const std::vector<int32_t>& positions = Unwrap(batch).positions;
  WEIR_CHECK(q.rows == static_cast<int64_t>(positions.size()));
  WEIR_CHECK(q.cols == int64_t{shape.num_heads} * shape.qk_head_dim() && rope_table.cols == shape.qk_rope_head_dim);
  for (int64_t t = 0; t < q.rows; ++t) {
    Row row = ReadRow(q, t);
    const std::span angles(F32Row(rope_table, positions[t]), static_cast<size_t>(rope_table.cols));
    for (int32_t h = 0; h < shape.num_heads; ++h) {
      const size_t first = static_cast<size_t>(h) * shape.qk_head_dim() + shape.qk_nope_head_dim;
      Rotate(std::span(row).subspan(first, shape.qk_rope_head_dim), angles);
    }
    WriteRow(q, t, row);
  }
}

void ReferenceBackend::WriteLatent(const LatentCache& cache, TensorView kv_a, TensorView weight, float eps,
                                   const DeviceBatch& batch, TensorView rope_table, const MlaShape& shape) {
  const Batch& b = Unwrap(batch);
  WEIR_CHECK(kv_a.rows == static_cast<int64_t>(b.positions.size()));
  WEIR_CHECK(kv_a.cols == shape.cache_width() && cache.rows.cols == shape.cache_width());
  const Row w = ReadRow(weight, 0);
  for (int64_t t = 0; t < kv_a.rows; ++t) {
    Row row = ReadRow(kv_a, t);
    const Row latent = Normalize(std::span(row).first(shape.kv_lora_rank), w, eps);
    std::copy(latent.begin(), latent.end(), row.begin());
    Rotate(std::span(row).subspan(shape.kv_lora_rank),
           std::span(F32Row(rope_table, b.positions[t]), static_cast<size_t>(rope_table.cols)));
    WriteRow(cache.rows, b.slot_mapping[t], row);
  }
}

void ReferenceBackend::PromptAttention(TensorView out, TensorView q, const LatentCache& cache, const DeviceBatch& batch,
                                       const LinearWeight& kv_b, const MlaShape& shape) {
  const Batch& b = Unwrap(batch);
  const Matrix& matrix = static_cast<const PackedLinear&>(kv_b).matrix;
  for (const SequenceRows& sequence : b.sequences) {
    if (sequence.num_prompt_rows == 0) continue;
    std::vector<KeyValue> context;
    const int64_t end = int64_t{sequence.first_position} + sequence.num_prompt_rows;
    for (const Row& row : ReadContext(cache, b.BlockTable(sequence), end)) {
      context.push_back(Expand(row, matrix, shape));
    }
    for (int32_t i = 0; i < sequence.num_prompt_rows; ++i) {
      const size_t num_visible = static_cast<size_t>(sequence.first_position) + i + 1;
      const int64_t t = int64_t{sequence.first_row} + i;
      WriteRow(out, t, AttendMha(ReadRow(q, t), std::span(context).first(num_visible), shape));
    }
  }
}

void ReferenceBackend::GeneratedAttention(TensorView out, TensorView q, const LatentCache& cache,
                                          const DeviceBatch& batch, const AbsorbedWeight& weight,
                                          const MlaShape& shape) {
  const Batch& b = Unwrap(batch);
  const Matrix& kv_b = static_cast<const PackedAbsorbed&>(weight).kv_b;
  for (const SequenceRows& sequence : b.sequences) {
    if (sequence.num_generated_rows == 0) continue;
    const int32_t num_rows = sequence.num_prompt_rows + sequence.num_generated_rows;
    const std::vector<Row> context =
        ReadContext(cache, b.BlockTable(sequence), int64_t{sequence.first_position} + num_rows);
    for (int32_t i = sequence.num_prompt_rows; i < num_rows; ++i) {
      const size_t num_visible = static_cast<size_t>(sequence.first_position) + i + 1;
      const int64_t t = int64_t{sequence.first_row} + i;
      WriteRow(out, t, AttendAbsorbed(ReadRow(q, t), std::span(context).first(num_visible), kv_b, shape));
    }
  }
}

void ReferenceBackend::Route(TensorView expert_ids, TensorView expert_weights, TensorView logits, TensorView bias,
                             const RouterShape& shape) {
  WEIR_CHECK(expert_ids.rows == logits.rows && expert_ids.cols == shape.num_experts_per_tok);
  CheckSameShape(expert_ids, expert_weights);
  std::span<const float> bias_row;
  if (bias.data != nullptr) bias_row = {F32Row(bias, 0), static_cast<size_t>(bias.cols)};
  for (int64_t t = 0; t < logits.rows; ++t) {
    const std::span row(F32Row(logits, t), static_cast<size_t>(logits.cols));
    Row weights;
    int32_t* id = I32Row(expert_ids, t);
    for (const Choice& choice : reference::Route(row, bias_row, shape)) {
      *id++ = choice.expert;
      weights.push_back(choice.weight);
    }
    WriteRow(expert_weights, t, weights);
  }
}

void ReferenceBackend::Mlp(TensorView out, TensorView x, const MlpWeight& weight) {
  const SwiGlu& mlp = static_cast<const PackedMlp&>(weight).mlp;
  WEIR_CHECK(out.rows == x.rows && out.cols == mlp.down.rows);
  for (int64_t t = 0; t < x.rows; ++t) WriteRow(out, t, Apply(mlp, ReadRow(x, t)));
}

void ReferenceBackend::Experts(TensorView out, TensorView x, TensorView expert_ids, TensorView expert_weights,
                               const ExpertsWeight& weight, int64_t* load) {
  const PackedExperts& packed = static_cast<const PackedExperts&>(weight);
  CheckSameShape(out, x);
  CheckSameShape(expert_ids, expert_weights);
  for (int64_t t = 0; t < x.rows; ++t) {
    const Row row = ReadRow(x, t), weights = ReadRow(expert_weights, t);
    Row sum(row.size());
    for (int64_t k = 0; k < expert_ids.cols; ++k) {
      const int32_t id = I32Row(expert_ids, t)[k];
      const auto place = std::lower_bound(packed.ids.begin(), packed.ids.end(), id);
      if (place == packed.ids.end() || *place != id) continue;  // another rank's
      const size_t local = static_cast<size_t>(place - packed.ids.begin());
      const Row result = Rounded(Apply(packed.experts[local], row));
      for (size_t d = 0; d < sum.size(); ++d) sum[d] += weights[k] * result[d];
      if (load != nullptr) ++load[local];
    }
    WriteRow(out, t, sum);
  }
}

void ReferenceBackend::Add(TensorView a, TensorView b) {
  CheckSameShape(a, b);
  for (int64_t t = 0; t < a.rows; ++t) {
    Row sum = ReadRow(a, t);
    const Row addend = ReadRow(b, t);
    for (size_t d = 0; d < sum.size(); ++d) sum[d] += addend[d];
    WriteRow(a, t, sum);
  }
}

void ReferenceBackend::GatherSampleRows(TensorView out, TensorView x, const DeviceBatch& batch) {
  const std::vector<int32_t>& sample_rows = Unwrap(batch).sample_rows;
  WEIR_CHECK(out.rows == static_cast<int64_t>(sample_rows.size()));
  for (size_t i = 0; i < sample_rows.size(); ++i) {
    Copy(out.Rows(static_cast<int64_t>(i), 1), x.Rows(sample_rows[i], 1));
  }
}

void ReferenceBackend::Sample(std::span<SampleOutput> outputs, TensorView logits, std::span<const SampleRow> rows) {
  WEIR_CHECK(outputs.size() == rows.size() && logits.rows == static_cast<int64_t>(rows.size()));
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::span row(F32Row(logits, static_cast<int64_t>(i)), static_cast<size_t>(logits.cols));
    SampleFromLogits(row, rows[i], outputs[i]);
  }
}

}  // namespace
}  // namespace weir::kernels::reference

namespace weir::kernels {

std::unique_ptr<Backend> NewReferenceBackend() { return std::make_unique<reference::ReferenceBackend>(); }

}  // namespace weir::kernels
