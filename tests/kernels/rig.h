#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/backend.h"

// What a test of an operation needs around it: numbers by name, weights as a checkpoint holds them, and tensors on a
// backend that show what was not written.

namespace weir::kernels {

// A matrix on the host; integers are held exactly.
struct Values {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<float> data;

  Values() = default;
  Values(int64_t num_rows, int64_t num_cols, float value = 0.0f)
      : rows(num_rows), cols(num_cols), data(static_cast<size_t>(num_rows * num_cols), value) {}
  float& at(int64_t r, int64_t c) { return data[static_cast<size_t>(r * cols + c)]; }
  float at(int64_t r, int64_t c) const { return data[static_cast<size_t>(r * cols + c)]; }
  std::span<const float> row(int64_t r) const { return std::span(data).subspan(r * cols, cols); }
  std::span<float> row(int64_t r) { return std::span(data).subspan(r * cols, cols); }
};

// What a backend rounds to BF16 in attention over a BF16 cache, of what kernels/backend.h allows.
enum class AttentionRounding {
  kNone,
  kOutputLatents,  // o_lat, which W_UV takes
  kAllFactors,     // q, keys, values, q_lat, probabilities as well
};

// The rows of `values` that `order` names.
Values Pick(const Values& values, std::span<const int32_t> order);

// Pseudo-random numbers that depend on a name only.
class Random {
 public:
  explicit Random(std::string_view name);
  float Normal(float scale = 1.0f) { return scale * normal_(engine_); }
  float Uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(engine_); }
  int32_t Below(int32_t n) { return std::uniform_int_distribution<int32_t>(0, n - 1)(engine_); }
  Values NormalValues(int64_t rows, int64_t cols, float scale = 1.0f);
  std::vector<int32_t> Permutation(int32_t n);

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

// A weight as a checkpoint holds it: a part of a larger tensor, not aligned to anything when `is_unaligned`.
struct WeightKind {
  const char* name;
  DType dtype;
  ScaleFormat format;
};
inline constexpr WeightKind kWeightKinds[] = {
    {"f32", DType::kF32, ScaleFormat::kF32},
    {"bf16", DType::kBF16, ScaleFormat::kF32},
    {"f16", DType::kF16, ScaleFormat::kF32},
    {"fp8", DType::kF8E4M3, ScaleFormat::kF32},
    {"fp8_ue8m0", DType::kF8E4M3, ScaleFormat::kUe8m0},
};
inline constexpr WeightKind kF32Weights = kWeightKinds[0], kBF16Weights = kWeightKinds[1];

struct PartOfTensor {
  int64_t first_row = 0;
  int64_t first_col = 0;
  bool is_unaligned = false;
};

class HostWeight {
 public:
  // Outputs of about unit size for inputs of unit size.
  HostWeight(Random& random, int64_t rows, int64_t cols, const WeightKind& kind, const PartOfTensor& part = {});
  // Exactly these values, which the dtype must be able to hold; FP8 with scales of 1.
  HostWeight(const Values& values, const WeightKind& kind);

  const HostMatrix& matrix() const { return matrix_; }
  const WeightKind& kind() const { return kind_; }
  const Values& dequantized() const { return dequantized_; }
  double LargestRowNorm() const;

 private:
  void Store(const Values& whole, int64_t rows, int64_t cols, const PartOfTensor& part);

  WeightKind kind_;
  std::vector<char> bytes_, scale_bytes_;
  HostMatrix matrix_;
  Values dequantized_;
};

// Whole tensors to and from the host, waiting for everything before.  WriteTensor rounds to the view's dtype.
Values ReadTensor(Backend& backend, const TensorView& view);
void WriteTensor(Backend& backend, const TensorView& view, const Values& values);

// Tensors on a backend.  Everything not yet written holds NaN (-1 for integers), also the `padding` columns between
// rows, which must stay that way.
class Rig {
 public:
  // Activations are rounded to `activation_dtype` before the backend sees them, so that one backend can be compared
  // with another that keeps less.
  Rig(Backend& backend, DType activation_dtype, int64_t padding)
      : backend_(backend), activation_dtype_(activation_dtype), padding_(padding) {}
  explicit Rig(Backend& backend) : Rig(backend, backend.activation_dtype(), 0) {}

  Backend& backend() { return backend_; }
  // What the tests' registry says of this backend.
  void set_attention_rounding(AttentionRounding rounding) { attention_rounding_ = rounding; }
  AttentionRounding attention_rounding() const { return attention_rounding_; }
  Backend* operator->() { return &backend_; }

  TensorView Empty(int64_t rows, int64_t cols, DType dtype);
  TensorView EmptyActivation(int64_t rows, int64_t cols) { return Empty(rows, cols, backend_.activation_dtype()); }
  TensorView Put(const Values& values, DType dtype);
  TensorView PutActivation(const Values& values);
  Values Get(const TensorView& view) { return ReadTensor(backend_, view); }

  std::unique_ptr<LinearWeight> Linear(const HostWeight& weight);
  std::unique_ptr<DeviceBatch> Batch(const BatchLayout& layout);
  // A batch of rows that only have token ids and positions.
  std::unique_ptr<DeviceBatch> BatchAt(std::span<const int32_t> token_ids, std::span<const int32_t> positions);

  // Whether all padding is as it was.
  bool PaddingIsIntact();

 private:
  struct Tensor {
    DeviceBuffer buffer;
    TensorView whole;
    int64_t cols = 0;
  };
  Backend& backend_;
  DType activation_dtype_;
  int64_t padding_;
  AttentionRounding attention_rounding_ = AttentionRounding::kNone;
  std::vector<Tensor> tensors_;
};

// One element of any dtype, at any address.
float DecodeAt(const char* place, DType dtype);
// The dtype's nearest value.
float RoundedTo(DType dtype, float value);

// cos and sin of position * frequency_i in the layout of spec 2.4: [max_positions, dr].
Values RopeTable(int64_t max_positions, int32_t rope_head_dim);

}  // namespace weir::kernels
