#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/reference/rows.h"

// Linear layers and SwiGLU, as spec 2.9 and 4 and the arithmetic of kernels/backend.h define them.

namespace weir::kernels::reference {

// A weight with every element decoded to f32; FP8 scales stay apart because they multiply sums, not elements.
struct Matrix {
  int64_t rows = 0;  // outputs
  int64_t cols = 0;  // inputs
  DType dtype = DType::kF32;
  ScaleFormat format = ScaleFormat::kF32;
  std::vector<float> elements;  // [rows, cols]
  int64_t first_col = 0;        // FP8: where in the whole tensor's columns this part begins
  int64_t num_col_blocks = 1;   // FP8: blocks of 128 columns of the whole tensor that this part touches
  std::vector<float> scales;    // FP8: [rows, num_col_blocks]

  std::span<const float> Row(int64_t row) const { return std::span(elements).subspan(row * cols, cols); }
  // Of the block that column `col` lies in, counted from the first that this part touches.
  int64_t ColBlock(int64_t col) const { return (first_col + col) / 128 - first_col / 128; }
  int64_t num_bytes() const { return static_cast<int64_t>((elements.size() + scales.size()) * sizeof(float)); }
};

// INVALID_ARGUMENT for a dtype that is no weight's, and for FP8 without scales or with scales that are not finite and
// positive.
absl::StatusOr<Matrix> Decode(const HostMatrix& weight, ScaleFormat format);

// FP8: every element times its scale, rounded to BF16, as a BF16 matrix.  Others are left as they are.
Matrix Dequantized(Matrix weight);

// weight[N, K] * x[K] before its result is rounded to f32.  Rounds or quantises x first as weight.dtype asks.
reference::Row Multiply(const Matrix& weight, std::span<const double> x);

struct SwiGlu {
  Matrix gate, up, down;
  int64_t num_bytes() const { return gate.num_bytes() + up.num_bytes() + down.num_bytes(); }
};
absl::StatusOr<SwiGlu> Decode(const HostMlp& weight, ScaleFormat format);

// down( silu(gate x) * (up x) ), before its result is rounded to f32.
reference::Row Apply(const SwiGlu& mlp, std::span<const double> x);

}  // namespace weir::kernels::reference
