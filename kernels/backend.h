#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/sampling.h"
#include "kernels/tensor.h"

// One device and one in-order stream of operations: everything the forward pass of the DeepSeek V2 and V3 families
// needs.
//
// Operations may return before they have run; they run in the order of the calls.  What they do wrong on the device (a
// fault, out of memory in a workspace) is kept, and comes out of Synchronize.  Wrong shapes are bugs of the caller and
// CHECK.  Memory is opaque: callers never follow TensorView::data, they copy.  Workspaces belong to the backend.
// Not thread-safe: one thread drives a backend.
//
// Reproducible by construction: an output row of any operation depends only on its own input row, on its own sequence's
// cache and on weights; never on the number of other rows, on how rows are cut into calls, or on the number of threads.
// Each backend has one fixed order of additions per row and keeps it for every shape.
//
// Arithmetic, the same for every backend (docs/ARCHITECTURE.md gives the reasons):
//   * activations are activation_dtype(): f32 on CPUs.  Sums are f32 or wider.
//   * a linear layer with BF16 (F16) weights first rounds its input to BF16 (F16), round to nearest even.
//   * a linear layer with FP8 weights quantises its input per row and per block of 128 inputs (the weight's own column
//     blocks, first_col counted) to e4m3: s = max(amax, 1e-4) / 448, q = e4m3(clamp(x / s, +-448)); with
//     ScaleFormat::kUe8m0 s is rounded up to a power of two first.  Out = sum over blocks of (sum of q * w) * s *
//     scale.
//   * a linear layer with F32 weights uses its input as it is.
//   * FP8 scales and the divisions x / s are f32 operations (kernels/float_formats.h): a quantised input has the same
//     bits on every backend.
//   * attention takes q, the cache rows and the absorbed W_UK and W_UV as they are, without rounding them first, and
//     keeps its probabilities in f32.  Over a BF16 cache a backend may round to BF16 what enters a product of attention
//     itself: q, keys and values; q_lat, the probabilities and o_lat.  q_nope enters W_UK unrounded.

namespace weir::kernels {

class Backend;

// Owns memory of a backend; frees it on destruction.  The backend must outlive it.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(Backend* backend, void* data, int64_t num_bytes)
      : backend_(backend), data_(data), num_bytes_(num_bytes) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();

  int64_t num_bytes() const { return num_bytes_; }
  // A dense [rows, cols] view that begins `first_byte` bytes into the buffer.
  TensorView View(DType dtype, int64_t rows, int64_t cols, int64_t first_byte = 0) const {
    return {static_cast<char*>(data_) + first_byte, dtype, rows, cols, cols};
  }

 private:
  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  int64_t num_bytes_ = 0;
};

// How inputs of FP8 layers are scaled: f32 scales (V3, R1) or powers of two (V3.1 and later, "scale_fmt": "ue8m0").
enum class ScaleFormat : uint8_t { kF32, kUe8m0 };

// Weights in a backend's own form, made once by Pack*.  Opaque; destroyed by their owner before the backend.
class LinearWeight {
 public:
  virtual ~LinearWeight() = default;
  virtual int64_t num_bytes() const = 0;  // what it occupies on the device
};
class MlpWeight {  // one SwiGLU: down( silu(gate x) * (up x) )
 public:
  virtual ~MlpWeight() = default;
  virtual int64_t num_bytes() const = 0;
};
class ExpertsWeight {  // the routed experts that this rank holds, for one layer
 public:
  virtual ~ExpertsWeight() = default;
  virtual int64_t num_bytes() const = 0;
};
class AbsorbedWeight {  // W_UK and W_UV of one layer, from kv_b_proj (spec: 2.6)
 public:
  virtual ~AbsorbedWeight() = default;
  virtual int64_t num_bytes() const = 0;
};

struct HostMlp {
  HostMatrix gate;  // [intermediate, hidden]
  HostMatrix up;    // [intermediate, hidden]
  HostMatrix down;  // [hidden, intermediate]
};

// Sizes of one rank's attention.  H counts the heads of this rank.
struct MlaShape {
  int32_t num_heads = 0;         // H
  int32_t kv_lora_rank = 0;      // C
  int32_t qk_nope_head_dim = 0;  // dn
  int32_t qk_rope_head_dim = 0;  // dr
  int32_t v_head_dim = 0;        // dv
  float softmax_scale = 0.0f;    // (dn + dr)^-1/2, times m^2 under YaRN

  int32_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int32_t cache_width() const { return kv_lora_rank + qk_rope_head_dim; }
};

// The latent cache of one layer: [num_blocks * block_size, C + dr], a row per token: the C latents after
// kv_a_layernorm, then the dr rotated rope values in the checkpoint's interleaved order.  dtype kBF16 or kF32.
struct LatentCache {
  TensorView rows;
  int32_t block_size = 64;
};

// One sequence's part of a batch.  Its rows stand together: first the prompt rows, then the generated rows, at
// consecutive positions.  All its tokens at positions below first_position are in the cache already.
struct SequenceRows {
  int32_t first_row = 0;
  int32_t num_prompt_rows = 0;     // run in the MHA form
  int32_t num_generated_rows = 0;  // run in the absorbed form
  int32_t first_position = 0;      // of first_row
  int32_t block_table_begin = 0;   // into BatchLayout::block_tables
  int32_t num_blocks = 0;
};

// The integers of one step, in host memory.
struct BatchLayout {
  std::span<const int32_t> token_ids;     // [T]
  std::span<const int32_t> positions;     // [T]
  std::span<const int64_t> slot_mapping;  // [T]: block id * block_size + offset, where the row's latent goes
  std::span<const SequenceRows> sequences;
  std::span<const int32_t> block_tables;  // block ids, all sequences one after the other
  std::span<const int32_t> sample_rows;   // rows whose logits are wanted, ascending
};

// A BatchLayout on the device.  Made once, filled each step.
class DeviceBatch {
 public:
  virtual ~DeviceBatch() = default;
};

// Spec 2.7 and 2.8.
struct RouterShape {
  enum class Scoring : uint8_t { kSigmoid, kSoftmax };
  enum class GroupScore : uint8_t { kNone, kTopTwoSum, kMax };  // kNone: no groups
  Scoring scoring = Scoring::kSigmoid;
  GroupScore group_score = GroupScore::kNone;
  int32_t num_experts = 0;          // E
  int32_t num_experts_per_tok = 0;  // K
  int32_t num_groups = 1;
  int32_t num_groups_kept = 1;
  bool normalizes_weights = false;  // w / (sum w + 1e-20), norm_topk_prob
  float scaling_factor = 1.0f;      // multiplies the weights; the caller passes 1 where the family does not scale
};

class Backend {
 public:
  virtual ~Backend() = default;

  // "reference", "cpu", "cuda"; detail says what it runs on, e.g. "avx512-bf16, 2 threads".
  virtual std::string_view name() const = 0;
  virtual std::string_view detail() const = 0;
  virtual DType activation_dtype() const = 0;

  // ---- memory ----
  // RESOURCE_EXHAUSTED with both sizes when it does not fit.  Aligned to 64 bytes at least; not zeroed.
  virtual absl::StatusOr<DeviceBuffer> Allocate(int64_t num_bytes) = 0;
  virtual void Free(void* data) = 0;  // called by ~DeviceBuffer only
  // Host memory must stay as it is until the next Synchronize.  Dense rows on the host side.
  virtual void CopyToDevice(TensorView destination, const void* source) = 0;
  virtual void CopyToHost(void* destination, TensorView source) = 0;
  virtual void Copy(TensorView destination, TensorView source) = 0;  // same dtype and shape
  virtual void Zero(TensorView destination) = 0;
  // Memory that will be used: takes it from the system now, in the background where that takes time, so that its first
  // use need not.  What it holds stays.  `memory` is dense, the whole of a buffer.
  virtual void Prefault(TensorView memory) = 0;
  // Waits for all operations so far; the first error since the last call.
  virtual absl::Status Synchronize() = 0;

  // ---- weights ----
  // INVALID_ARGUMENT names what is wrong with the matrix (dtype, missing or non-finite scales).
  virtual absl::StatusOr<std::unique_ptr<LinearWeight>> PackLinear(const HostMatrix& weight, ScaleFormat format) = 0;
  virtual absl::StatusOr<std::unique_ptr<MlpWeight>> PackMlp(const HostMlp& weight, ScaleFormat format) = 0;
  // expert_ids[i] is the logical id of experts[i]; ascending.  May be empty.
  virtual absl::StatusOr<std::unique_ptr<ExpertsWeight>> PackExperts(std::span<const HostMlp> experts,
                                                                     std::span<const int32_t> expert_ids,
                                                                     ScaleFormat format) = 0;
  // kv_b[H * (dn + dv), C].  FP8 is dequantised to BF16, once; other dtypes stay.
  virtual absl::StatusOr<std::unique_ptr<AbsorbedWeight>> PackAbsorbed(const HostMatrix& kv_b,
                                                                       const MlaShape& shape) = 0;

  // ---- one step's integers ----
  virtual std::unique_ptr<DeviceBatch> NewBatch() = 0;
  virtual void Upload(DeviceBatch& batch, const BatchLayout& layout) = 0;  // copies; layout may go at once

  // ---- the forward pass, in the order of the paper ----
  // out[T, D] = table[token_id - first_id], zero for ids outside [first_id, first_id + table.rows).
  virtual void Embed(TensorView out, const DeviceBatch& batch, TensorView table, int32_t first_id) = 0;
  // out[T, D] = x / sqrt(mean(x^2) + eps) * weight.  weight [1, D] f32.  out may be x.
  virtual void RmsNorm(TensorView out, TensorView x, TensorView weight, float eps) = 0;
  // residual += delta, then out = RmsNorm(residual).
  virtual void AddRmsNorm(TensorView out, TensorView residual, TensorView delta, TensorView weight, float eps) = 0;
  // out[T, N] = x[T, K] * weight[N, K]^T.  out is activation_dtype(), or f32 for logits.
  virtual void Linear(TensorView out, TensorView x, const LinearWeight& weight) = 0;
  // Rotates, in place, the last dr of each head's dn + dr columns by its row's position.  Pairs (2i, 2i+1) turn by
  // angles [position, i] of rope_table [max_positions, dr]: cos in the even columns, sin in the odd ones, f32
  // (spec 2.4).
  virtual void Rope(TensorView q, const DeviceBatch& batch, TensorView rope_table, const MlaShape& shape) = 0;
  // kv_a[T, C + dr] -> cache rows at slot_mapping: RmsNorm of the first C with `weight`, Rope of the last dr.
  virtual void WriteLatent(const LatentCache& cache, TensorView kv_a, TensorView weight, float eps,
                           const DeviceBatch& batch, TensorView rope_table, const MlaShape& shape) = 0;
  // Prompt rows of out[T, H * dv] (others are left alone): MHA form (spec 2.3) over the cache, which already holds this
  // step's rows.  q[T, H * (dn + dr)] is rotated.  kv_b as PackLinear made it, [H * (dn + dv), C].  K and V of every
  // context token, this step's included, come from its cache row, so chunking cannot be seen in a result.
  virtual void PromptAttention(TensorView out, TensorView q, const LatentCache& cache, const DeviceBatch& batch,
                               const LinearWeight& kv_b, const MlaShape& shape) = 0;
  // Generated rows of out[T, H * dv]: absorbed form (spec 2.6).
  virtual void GeneratedAttention(TensorView out, TensorView q, const LatentCache& cache, const DeviceBatch& batch,
                                  const AbsorbedWeight& weight, const MlaShape& shape) = 0;
  // expert_ids[T, K] (I32, ascending in each row) and expert_weights[T, K] (f32) from logits[T, E] (f32).
  // bias [1, E] f32 takes part in the choice only; a null view means none.  Ties go to the lower expert id.
  virtual void Route(TensorView expert_ids, TensorView expert_weights, TensorView logits, TensorView bias,
                     const RouterShape& shape) = 0;
  // out[T, D] = down( silu(gate x) * (up x) ).
  virtual void Mlp(TensorView out, TensorView x, const MlpWeight& weight) = 0;
  // out[T, D] = sum over this rank's chosen experts, in ascending id, of weight * expert(x); zero where none is here.
  // Adds, per expert held, the rows it computed to load (host memory, one entry per expert held; may be null).
  virtual void Experts(TensorView out, TensorView x, TensorView expert_ids, TensorView expert_weights,
                       const ExpertsWeight& weight, int64_t* load) = 0;
  // a += b.
  virtual void Add(TensorView a, TensorView b) = 0;
  // out[i] = x[batch.sample_rows[i]].
  virtual void GatherSampleRows(TensorView out, TensorView x, const DeviceBatch& batch) = 0;
  // outputs[i] from logits row i.  rows and outputs are host memory and must live until Synchronize.
  virtual void Sample(std::span<SampleOutput> outputs, TensorView logits, std::span<const SampleRow> rows) = 0;
};

// The specification: plain loops, double accumulation, one thread.
std::unique_ptr<Backend> NewReferenceBackend();

struct CpuOptions {
  int32_t num_threads = 0;  // 0 = the processors this process may run on
  // Forces an instruction set ("avx2", "avx512", "avx512-bf16"); empty = the fastest here, by measurement where flags
  // mislead.
  std::string_view isa;
  // Thread i to the i-th processor this process may run on; the thread that makes the backend is thread 0.
  bool pins_threads = false;
};
// INVALID_ARGUMENT when `isa` is unknown or this processor lacks it; the message lists what it has.
absl::StatusOr<std::unique_ptr<Backend>> NewCpuBackend(const CpuOptions& options);

}  // namespace weir::kernels
