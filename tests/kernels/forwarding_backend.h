#pragma once

#include <memory>
#include <span>

#include "kernels/backend.h"

// A backend that passes every call on to another.  A test overrides the one operation that it wants to spoil, count or
// record.

namespace weir::kernels {

class ForwardingBackend : public Backend {
 public:
  // `inner` must outlive this.
  explicit ForwardingBackend(Backend& inner) : inner_(inner) {}

  std::string_view name() const override { return inner_.name(); }
  std::string_view detail() const override { return inner_.detail(); }
  DType activation_dtype() const override { return inner_.activation_dtype(); }

  absl::StatusOr<DeviceBuffer> Allocate(int64_t num_bytes) override { return inner_.Allocate(num_bytes); }
  void Free(void* data) override { inner_.Free(data); }
  void CopyToDevice(TensorView destination, const void* source) override { inner_.CopyToDevice(destination, source); }
  void CopyToHost(void* destination, TensorView source) override { inner_.CopyToHost(destination, source); }
  void Copy(TensorView destination, TensorView source) override { inner_.Copy(destination, source); }
  void Zero(TensorView destination) override { inner_.Zero(destination); }
  void Prefault(TensorView memory) override { inner_.Prefault(memory); }
  absl::Status Synchronize() override { return inner_.Synchronize(); }

  absl::StatusOr<std::unique_ptr<LinearWeight>> PackLinear(const HostMatrix& weight, ScaleFormat format) override {
    return inner_.PackLinear(weight, format);
  }
  absl::StatusOr<std::unique_ptr<MlpWeight>> PackMlp(const HostMlp& weight, ScaleFormat format) override {
    return inner_.PackMlp(weight, format);
  }
  absl::StatusOr<std::unique_ptr<ExpertsWeight>> PackExperts(std::span<const HostMlp> experts,
                                                             std::span<const int32_t> expert_ids,
                                                             ScaleFormat format) override {
    return inner_.PackExperts(experts, expert_ids, format);
  }
  absl::StatusOr<std::unique_ptr<AbsorbedWeight>> PackAbsorbed(const HostMatrix& kv_b, const MlaShape& shape) override {
    return inner_.PackAbsorbed(kv_b, shape);
  }

  std::unique_ptr<DeviceBatch> NewBatch() override { return inner_.NewBatch(); }
  void Upload(DeviceBatch& batch, const BatchLayout& layout) override { inner_.Upload(batch, layout); }

  void Embed(TensorView out, const DeviceBatch& batch, TensorView table, int32_t first_id) override {
    inner_.Embed(out, batch, table, first_id);
  }
  void RmsNorm(TensorView out, TensorView x, TensorView weight, float eps) override {
    inner_.RmsNorm(out, x, weight, eps);
  }
  void AddRmsNorm(TensorView out, TensorView residual, TensorView delta, TensorView weight, float eps) override {
    inner_.AddRmsNorm(out, residual, delta, weight, eps);
  }
  void Linear(TensorView out, TensorView x, const LinearWeight& weight) override { inner_.Linear(out, x, weight); }
  void Rope(TensorView q, const DeviceBatch& batch, TensorView rope_table, const MlaShape& shape) override {
    inner_.Rope(q, batch, rope_table, shape);
  }
  void WriteLatent(const LatentCache& cache, TensorView kv_a, TensorView weight, float eps, const DeviceBatch& batch,
                   TensorView rope_table, const MlaShape& shape) override {
    inner_.WriteLatent(cache, kv_a, weight, eps, batch, rope_table, shape);
  }
  void PromptAttention(TensorView out, TensorView q, const LatentCache& cache, const DeviceBatch& batch,
                       const LinearWeight& kv_b, const MlaShape& shape) override {
    inner_.PromptAttention(out, q, cache, batch, kv_b, shape);
  }
  void GeneratedAttention(TensorView out, TensorView q, const LatentCache& cache, const DeviceBatch& batch,
                          const AbsorbedWeight& weight, const MlaShape& shape) override {
    inner_.GeneratedAttention(out, q, cache, batch, weight, shape);
  }
  void Route(TensorView expert_ids, TensorView expert_weights, TensorView logits, TensorView bias,
             const RouterShape& shape) override {
    inner_.Route(expert_ids, expert_weights, logits, bias, shape);
  }
  void Mlp(TensorView out, TensorView x, const MlpWeight& weight) override { inner_.Mlp(out, x, weight); }
  void Experts(TensorView out, TensorView x, TensorView expert_ids, TensorView expert_weights,
               const ExpertsWeight& weight, int64_t* load) override {
    inner_.Experts(out, x, expert_ids, expert_weights, weight, load);
  }
  void Add(TensorView a, TensorView b) override { inner_.Add(a, b); }
  void GatherSampleRows(TensorView out, TensorView x, const DeviceBatch& batch) override {
    inner_.GatherSampleRows(out, x, batch);
  }
  void Sample(std::span<SampleOutput> outputs, TensorView logits, std::span<const SampleRow> rows) override {
    inner_.Sample(outputs, logits, rows);
  }

 protected:
  Backend& inner_;
};

}  // namespace weir::kernels
