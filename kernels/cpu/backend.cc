#include "kernels/backend.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/experts.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/machine.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/prefault.h"
#include "kernels/cpu/router.h"
#include "kernels/float_formats.h"

// The fast backend for CPUs: every operation is done when its call returns, by all threads together.

namespace weir::kernels::cpu {
namespace {

struct PackedLinear final : LinearWeight {
  int64_t num_bytes() const override { return panels.num_bytes() + scales.num_bytes(); }
  Matrix matrix;
  Memory panels, scales;
};

struct PackedMlp final : MlpWeight {
  explicit PackedMlp(PackedMlps p) : packed(std::move(p)) {}
  int64_t num_bytes() const override { return packed.num_bytes(); }
  PackedMlps packed;
};

struct PackedExperts final : ExpertsWeight {
  explicit PackedExperts(PackedMlps p) : packed(std::move(p)) {}
  int64_t num_bytes() const override { return packed.num_bytes(); }
  PackedMlps packed;
  std::vector<int32_t> local_of_id;
};

struct PackedAbsorbed final : AbsorbedWeight {
  explicit PackedAbsorbed(Absorbed a) : absorbed(std::move(a)) {}
  int64_t num_bytes() const override { return absorbed.memory.num_bytes(); }
  Absorbed absorbed;
};

// Rows of views.
char* RowStart(const TensorView& view, int64_t row) {
  return static_cast<char*>(view.data) + row * view.row_stride * SizeOf(view.dtype);
}
float* F32Row(const TensorView& view, int64_t row) { return reinterpret_cast<float*>(RowStart(view, row)); }

void CheckF32(const TensorView& view) { WEIR_CHECK(view.dtype == DType::kF32, "activations are F32 on CPUs"); }
void CheckSameShape(const TensorView& a, const TensorView& b) {
  WEIR_CHECK(a.rows == b.rows && a.cols == b.cols, "shapes differ");
}

template <typename T>
void Assign(std::vector<T>& copy, std::span<const T> values) {
  copy.assign(values.begin(), values.end());
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(const ThreadPool::Options& options, const Isa& isa)
      : machine_(options, isa.tiles(), *isa.vector_ops()),
        detail_(std::string(isa.name) + ", " + std::to_string(options.num_threads) +
                (options.num_threads == 1 ? " thread" : " threads")) {}

  std::string_view name() const override { return "cpu"; }
  std::string_view detail() const override { return detail_; }
  DType activation_dtype() const override { return DType::kF32; }

  absl::StatusOr<DeviceBuffer> Allocate(int64_t num_bytes) override;
  void Free(void* data) override {
    prefault_.Remove(data);
    FreeBytes(data);
  }
  void CopyToDevice(TensorView destination, const void* source) override;
  void CopyToHost(void* destination, TensorView source) override;
  void Copy(TensorView destination, TensorView source) override;
  void Zero(TensorView destination) override;
  void Prefault(TensorView memory) override {
    prefault_.Add(memory.data, memory.rows * memory.cols * SizeOf(memory.dtype));
  }
  absl::Status Synchronize() override { return std::exchange(machine_.error, absl::OkStatus()); }

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

 private:
  Machine machine_;
  std::string detail_;
  SwiGluPlan swiglu_plan_;
  AttentionPlan attention_plan_;
  cpu::Prefault prefault_;
};

const Batch& Unwrap(const DeviceBatch& batch) { return static_cast<const Batch&>(batch); }

// ---- memory ----

absl::StatusOr<DeviceBuffer> CpuBackend::Allocate(int64_t num_bytes) {
  WEIR_CHECK(num_bytes >= 0);
  absl::StatusOr<void*> data = AllocateBytes(num_bytes);
  if (!data.ok()) return data.status();
  return DeviceBuffer(this, *data, num_bytes);
}

void CpuBackend::CopyToDevice(TensorView destination, const void* source) {
  const int64_t row_bytes = destination.cols * SizeOf(destination.dtype);
  machine_.ForRows(destination.rows, destination.cols, [&](int64_t r) {  // a table of embeddings is gigabytes
    std::memcpy(RowStart(destination, r), static_cast<const char*>(source) + r * row_bytes,
                static_cast<size_t>(row_bytes));
  });
}

void CpuBackend::CopyToHost(void* destination, TensorView source) {
  const int64_t row_bytes = source.cols * SizeOf(source.dtype);
  for (int64_t r = 0; r < source.rows; ++r) {
    std::memcpy(static_cast<char*>(destination) + r * row_bytes, RowStart(source, r), static_cast<size_t>(row_bytes));
  }
}

void CpuBackend::Copy(TensorView destination, TensorView source) {
  CheckSameShape(destination, source);
  WEIR_CHECK(destination.dtype == source.dtype);
  const int64_t row_bytes = source.cols * SizeOf(source.dtype);
  for (int64_t r = 0; r < source.rows; ++r) {
    std::memmove(RowStart(destination, r), RowStart(source, r), static_cast<size_t>(row_bytes));
  }
}

void CpuBackend::Zero(TensorView destination) {
  const int64_t row_bytes = destination.cols * SizeOf(destination.dtype);
  for (int64_t r = 0; r < destination.rows; ++r)
    std::memset(RowStart(destination, r), 0, static_cast<size_t>(row_bytes));
}

// ---- weights ----

absl::StatusOr<std::unique_ptr<LinearWeight>> CpuBackend::PackLinear(const HostMatrix& weight, ScaleFormat format) {
  if (absl::Status status = CheckWeight(weight); !status.ok()) return status;
  auto packed = std::make_unique<PackedLinear>();
  packed->matrix = LayoutOf(weight, format);
  absl::StatusOr<Memory> panels = Memory::Allocate(PanelsBytes(packed->matrix));
  if (!panels.ok()) return panels.status();
  absl::StatusOr<Memory> scales = Memory::Allocate(ScalesCount(packed->matrix) * static_cast<int64_t>(sizeof(float)));
  if (!scales.ok()) return scales.status();
  packed->panels = *std::move(panels);
  packed->scales = *std::move(scales);
  packed->matrix.panels = packed->panels.data();
  packed->matrix.scales = reinterpret_cast<const float*>(packed->scales.data());
  if (absl::Status status = Pack(machine_, weight, packed->matrix); !status.ok()) return status;
  return packed;
}

absl::StatusOr<std::unique_ptr<MlpWeight>> CpuBackend::PackMlp(const HostMlp& weight, ScaleFormat format) {
  absl::StatusOr<PackedMlps> packed = PackSwiGlus(machine_, {&weight, 1}, format);
  if (!packed.ok()) return packed.status();
  return std::make_unique<PackedMlp>(*std::move(packed));
}

absl::StatusOr<std::unique_ptr<ExpertsWeight>> CpuBackend::PackExperts(std::span<const HostMlp> experts,
                                                                       std::span<const int32_t> expert_ids,
                                                                       ScaleFormat format) {
  WEIR_CHECK(experts.size() == expert_ids.size());
  WEIR_CHECK(std::is_sorted(expert_ids.begin(), expert_ids.end(), std::less_equal<>()), "expert ids ascend");
  absl::StatusOr<PackedMlps> mlps = PackSwiGlus(machine_, experts, format);
  if (!mlps.ok()) return mlps.status();
  auto packed = std::make_unique<PackedExperts>(*std::move(mlps));
  packed->local_of_id.assign(expert_ids.empty() ? 0 : static_cast<size_t>(expert_ids.back()) + 1, -1);
  for (size_t i = 0; i < expert_ids.size(); ++i) packed->local_of_id[expert_ids[i]] = static_cast<int32_t>(i);
  return packed;
}

absl::StatusOr<std::unique_ptr<AbsorbedWeight>> CpuBackend::PackAbsorbed(const HostMatrix& kv_b,
                                                                         const MlaShape& shape) {
  absl::StatusOr<Absorbed> absorbed = PackAbsorbedHeads(machine_, kv_b, shape);
  if (!absorbed.ok()) return absorbed.status();
  return std::make_unique<PackedAbsorbed>(*std::move(absorbed));
}

// ---- one step's integers ----

void CpuBackend::Upload(DeviceBatch& batch, const BatchLayout& layout) {
  const size_t num_rows = layout.token_ids.size();
  WEIR_CHECK(layout.positions.size() == num_rows && layout.slot_mapping.size() == num_rows);
  WEIR_CHECK(std::is_sorted(layout.sample_rows.begin(), layout.sample_rows.end()));
  Batch& copy = static_cast<Batch&>(batch);
  Assign(copy.token_ids, layout.token_ids);
  Assign(copy.positions, layout.positions);
  Assign(copy.slot_mapping, layout.slot_mapping);
  Assign(copy.sequences, layout.sequences);
  Assign(copy.block_tables, layout.block_tables);
  Assign(copy.sample_rows, layout.sample_rows);
}

// ---- the forward pass, in the order of the paper ----

void WidenRow(const Machine& machine, float* out, const TensorView& table, int64_t row) {
  const char* source = RowStart(table, row);
  if (table.dtype == DType::kBF16)
    return machine.ops.widen_bf16(out, reinterpret_cast<const uint16_t*>(source), table.cols);
  if (table.dtype == DType::kF32) {
    std::memcpy(out, source, static_cast<size_t>(table.cols) * sizeof(float));
    return;
  }
  WEIR_CHECK(table.dtype == DType::kF16, "an embedding table is F32, F16 or BF16");
  for (int64_t c = 0; c < table.cols; ++c) out[c] = Float16ToFloat(reinterpret_cast<const uint16_t*>(source)[c]);
}

void CpuBackend::Embed(TensorView out, const DeviceBatch& batch, TensorView table, int32_t first_id) {
  const std::vector<int32_t>& token_ids = Unwrap(batch).token_ids;
  CheckF32(out);
  WEIR_CHECK(out.rows == static_cast<int64_t>(token_ids.size()) && out.cols == table.cols);
  machine_.ForRows(out.rows, out.cols, [&](int64_t t) {
    const int64_t row = int64_t{token_ids[t]} - first_id;
    if (row >= 0 && row < table.rows) {
      WidenRow(machine_, F32Row(out, t), table, row);
    } else {
      std::memset(F32Row(out, t), 0, static_cast<size_t>(out.cols) * sizeof(float));
    }
  });
}

void CpuBackend::RmsNorm(TensorView out, TensorView x, TensorView weight, float eps) {
  CheckF32(out), CheckF32(x), CheckF32(weight);
  CheckSameShape(out, x);
  WEIR_CHECK(weight.cols == x.cols);
  machine_.ForRows(x.rows, 2 * x.cols, [&](int64_t t) {
    machine_.ops.rms_norm(F32Row(out, t), F32Row(x, t), F32Row(weight, 0), x.cols, eps);
  });
}

void CpuBackend::AddRmsNorm(TensorView out, TensorView residual, TensorView delta, TensorView weight, float eps) {
  CheckF32(out), CheckF32(residual), CheckF32(delta), CheckF32(weight);
  CheckSameShape(out, residual), CheckSameShape(residual, delta);
  WEIR_CHECK(weight.cols == residual.cols);
  machine_.ForRows(residual.rows, 3 * residual.cols, [&](int64_t t) {
    machine_.ops.add(F32Row(residual, t), F32Row(delta, t), residual.cols);
    machine_.ops.rms_norm(F32Row(out, t), F32Row(residual, t), F32Row(weight, 0), residual.cols, eps);
  });
}

void CpuBackend::Linear(TensorView out, TensorView x, const LinearWeight& weight) {
  const Matrix& matrix = static_cast<const PackedLinear&>(weight).matrix;
  CheckF32(out), CheckF32(x);
  WEIR_CHECK(out.rows == x.rows && out.cols == matrix.outputs && x.cols == matrix.inputs,
             "a linear layer of " + std::to_string(matrix.inputs) + " inputs and " + std::to_string(matrix.outputs) +
                 " outputs got [" + std::to_string(x.rows) + ", " + std::to_string(x.cols) + "]");
  const InputRows rows = PrepareInputs(machine_, matrix, x);
  if (rows.x != nullptr) MultiplyAll(machine_, matrix, rows, out);
}

void CpuBackend::Rope(TensorView q, const DeviceBatch& batch, TensorView rope_table, const MlaShape& shape) {
  const std::vector<int32_t>& positions = Unwrap(batch).positions;
  CheckF32(q), CheckF32(rope_table);
  WEIR_CHECK(q.rows == static_cast<int64_t>(positions.size()));
  WEIR_CHECK(q.cols == int64_t{shape.num_heads} * shape.qk_head_dim() && rope_table.cols == shape.qk_rope_head_dim);
  machine_.ForRows(q.rows, int64_t{shape.num_heads} * shape.qk_rope_head_dim, [&](int64_t t) {
    const float* angles = F32Row(rope_table, positions[t]);
    for (int64_t h = 0; h < shape.num_heads; ++h) {
      machine_.ops.rotate(F32Row(q, t) + h * shape.qk_head_dim() + shape.qk_nope_head_dim, angles, rope_table.cols);
    }
  });
}

void CpuBackend::WriteLatent(const LatentCache& cache, TensorView kv_a, TensorView weight, float eps,
                             const DeviceBatch& batch, TensorView rope_table, const MlaShape& shape) {
  const Batch& b = Unwrap(batch);
  CheckF32(kv_a), CheckF32(weight), CheckF32(rope_table);
  WEIR_CHECK(kv_a.rows == static_cast<int64_t>(b.positions.size()));
  WEIR_CHECK(kv_a.cols == shape.cache_width() && cache.rows.cols == shape.cache_width());
  WEIR_CHECK(weight.cols == shape.kv_lora_rank && rope_table.cols == shape.qk_rope_head_dim);
  WEIR_CHECK(cache.rows.dtype == DType::kBF16 || cache.rows.dtype == DType::kF32, "a latent cache is BF16 or F32");
  const int64_t width = shape.cache_width(), latents = shape.kv_lora_rank;
  float* rows = machine_.inputs.Get<float>(kv_a.rows * width, machine_.error);
  if (rows == nullptr) return;
  machine_.ForRows(kv_a.rows, 2 * width, [&](int64_t t) {
    float* row = rows + t * width;
    machine_.ops.rms_norm(row, F32Row(kv_a, t), F32Row(weight, 0), latents, eps);
    std::memcpy(row + latents, F32Row(kv_a, t) + latents, static_cast<size_t>(shape.qk_rope_head_dim) * sizeof(float));
    machine_.ops.rotate(row + latents, F32Row(rope_table, b.positions[t]), shape.qk_rope_head_dim);
    WEIR_CHECK(b.slot_mapping[t] >= 0 && b.slot_mapping[t] < cache.rows.rows, "a slot lies outside the cache");
    char* slot = RowStart(cache.rows, b.slot_mapping[t]);
    if (cache.rows.dtype == DType::kBF16) {
      machine_.ops.round_to_bf16(reinterpret_cast<uint16_t*>(slot), row, width);
    } else {
      std::memcpy(slot, row, static_cast<size_t>(width) * sizeof(float));
    }
  });
}

void CheckAttention(const TensorView& out, const TensorView& q, const LatentCache& cache, const MlaShape& shape) {
  CheckF32(out), CheckF32(q);
  WEIR_CHECK(q.cols == int64_t{shape.num_heads} * shape.qk_head_dim());
  WEIR_CHECK(out.cols == int64_t{shape.num_heads} * shape.v_head_dim && out.rows == q.rows);
  WEIR_CHECK(cache.rows.cols == shape.cache_width() && cache.block_size > 0);
}

void CpuBackend::PromptAttention(TensorView out, TensorView q, const LatentCache& cache, const DeviceBatch& batch,
                                 const LinearWeight& kv_b, const MlaShape& shape) {
  CheckAttention(out, q, cache, shape);
  AttendPrompt(machine_, attention_plan_, {out, q, cache, Unwrap(batch), shape},
               static_cast<const PackedLinear&>(kv_b).matrix);
}

void CpuBackend::GeneratedAttention(TensorView out, TensorView q, const LatentCache& cache, const DeviceBatch& batch,
                                    const AbsorbedWeight& weight, const MlaShape& shape) {
  CheckAttention(out, q, cache, shape);
  AttendGenerated(machine_, attention_plan_, {out, q, cache, Unwrap(batch), shape},
                  static_cast<const PackedAbsorbed&>(weight).absorbed);
}

void CpuBackend::Route(TensorView expert_ids, TensorView expert_weights, TensorView logits, TensorView bias,
                       const RouterShape& shape) {
  CheckF32(expert_weights), CheckF32(logits);
  WEIR_CHECK(expert_ids.dtype == DType::kI32 && expert_ids.cols == shape.num_experts_per_tok);
  WEIR_CHECK(expert_ids.rows == logits.rows && logits.cols == shape.num_experts);
  CheckSameShape(expert_ids, expert_weights);
  if (bias.data != nullptr) WEIR_CHECK(bias.dtype == DType::kF32 && bias.cols == logits.cols);
  // Some 20 ns per expert: a task of 64 rows is worth a thread.
  constexpr int64_t kRowsPerTask = 64;
  machine_.pool.Run((logits.rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int32_t) {
    Router router(shape);
    const int64_t end = std::min(logits.rows, (task + 1) * kRowsPerTask);
    for (int64_t t = task * kRowsPerTask; t < end; ++t) {
      router.Route(F32Row(logits, t), static_cast<const float*>(bias.data),
                   reinterpret_cast<int32_t*>(RowStart(expert_ids, t)), F32Row(expert_weights, t));
    }
  });
}

void CpuBackend::Mlp(TensorView out, TensorView x, const MlpWeight& weight) {
  CheckF32(out), CheckF32(x);
  ApplyMlp(machine_, swiglu_plan_, static_cast<const PackedMlp&>(weight).packed.mlps[0], out, x);
}

void CpuBackend::Experts(TensorView out, TensorView x, TensorView expert_ids, TensorView expert_weights,
                         const ExpertsWeight& weight, int64_t* load) {
  const PackedExperts& packed = static_cast<const PackedExperts&>(weight);
  CheckF32(out), CheckF32(x), CheckF32(expert_weights);
  CheckSameShape(out, x), CheckSameShape(expert_ids, expert_weights);
  WEIR_CHECK(expert_ids.dtype == DType::kI32 && expert_ids.rows == x.rows);
  ApplyExperts(machine_, packed.packed, packed.local_of_id, swiglu_plan_, out, x, expert_ids, expert_weights, load);
}

void CpuBackend::Add(TensorView a, TensorView b) {
  CheckF32(a), CheckF32(b);
  CheckSameShape(a, b);
  machine_.ForRows(a.rows, a.cols, [&](int64_t t) { machine_.ops.add(F32Row(a, t), F32Row(b, t), a.cols); });
}

void CpuBackend::GatherSampleRows(TensorView out, TensorView x, const DeviceBatch& batch) {
  const std::vector<int32_t>& sample_rows = Unwrap(batch).sample_rows;
  WEIR_CHECK(out.rows == static_cast<int64_t>(sample_rows.size()));
  for (int64_t i = 0; i < out.rows; ++i) Copy(out.Rows(i, 1), x.Rows(sample_rows[i], 1));
}

void CpuBackend::Sample(std::span<SampleOutput> outputs, TensorView logits, std::span<const SampleRow> rows) {
  CheckF32(logits);
  WEIR_CHECK(outputs.size() == rows.size() && logits.rows == static_cast<int64_t>(rows.size()));
  machine_.pool.Run(logits.rows, [&](int64_t row, int32_t) {
    SampleFromLogits({F32Row(logits, row), static_cast<size_t>(logits.cols)}, rows[row], outputs[row]);
  });
}

}  // namespace
}  // namespace weir::kernels::cpu

namespace weir::kernels {

absl::StatusOr<std::unique_ptr<Backend>> NewCpuBackend(const CpuOptions& options) {
  if (options.num_threads < 0) {
    return absl::InvalidArgumentError("num_threads is " + std::to_string(options.num_threads) +
                                      "; it is 0 (all processors) or more");
  }
  const absl::StatusOr<const cpu::Isa*> isa = cpu::ChooseIsa(options.isa);
  if (!isa.ok()) return isa.status();
  cpu::ThreadPool::Options threads;
  threads.num_threads =
      options.num_threads > 0 ? options.num_threads : static_cast<int32_t>(cpu::UsableProcessors().size());
  threads.pins_threads = options.pins_threads;
  return std::make_unique<cpu::CpuBackend>(threads, **isa);
}

}  // namespace weir::kernels
