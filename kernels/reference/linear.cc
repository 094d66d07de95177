#include "kernels/reference/linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/check.h"
#include "kernels/float_formats.h"

namespace weir::kernels::reference {
namespace {

float ScaleAt(const HostMatrix& weight, int64_t row_block, int64_t col_block) {
  float scale;
  std::memcpy(&scale, weight.scales + row_block * weight.scales_stride + col_block, sizeof(scale));
  return scale;
}

absl::Status DecodeScales(const HostMatrix& weight, Matrix& matrix) {
  if (weight.scales == nullptr) {
    return absl::InvalidArgumentError("an F8_E4M3 weight needs scales (weight_scale_inv), and this one has none");
  }
  matrix.first_col = weight.first_col;
  matrix.num_col_blocks = weight.cols == 0 ? 0 : matrix.ColBlock(weight.cols - 1) + 1;
  for (int64_t r = 0; r < weight.rows; ++r) {
    for (int64_t b = 0; b < matrix.num_col_blocks; ++b) {
      const int64_t row_block = (weight.first_row + r) / 128, col_block = weight.first_col / 128 + b;
      const float scale = ScaleAt(weight, row_block, col_block);
      if (!std::isfinite(scale) || scale <= 0.0f) {
        return absl::InvalidArgumentError("the scale of block (" + std::to_string(row_block) + ", " +
                                          std::to_string(col_block) + ") is " + std::to_string(scale) +
                                          "; scales are finite and positive");
      }
      matrix.scales.push_back(scale);
    }
  }
  return absl::OkStatus();
}

float RoundedTo(DType dtype, double x) {
  const float value = static_cast<float>(x);
  if (dtype == DType::kBF16) return BFloat16ToFloat(FloatToBFloat16(value));
  if (dtype == DType::kF16) return Float16ToFloat(FloatToFloat16(value));
  return value;
}

Row MultiplyPlain(const Matrix& weight, std::span<const double> x) {
  Row rounded(x.size());
  for (size_t k = 0; k < x.size(); ++k) rounded[k] = RoundedTo(weight.dtype, x[k]);
  Row out(static_cast<size_t>(weight.rows));
  for (int64_t n = 0; n < weight.rows; ++n) {
    const std::span<const float> w = weight.Row(n);
    for (size_t k = 0; k < w.size(); ++k) out[n] += rounded[k] * w[k];
  }
  return out;
}

// Spec 4.2, for one row: q and one scale per block of the weight's columns.
struct Quantized {
  Row q;                      // [K], values of e4m3
  std::vector<double> scale;  // [num_col_blocks]
};

Quantized Quantize(std::span<const double> x, const Matrix& weight) {
  std::vector<float> amax(static_cast<size_t>(weight.num_col_blocks), 0.0f);
  for (int64_t k = 0; k < weight.cols; ++k) {
    float& largest = amax[weight.ColBlock(k)];
    largest = std::max(largest, std::fabs(static_cast<float>(x[k])));
  }
  Quantized result{Row(x.size()), {}};
  std::vector<float> scale;
  for (const float largest : amax) {
    const float exact = E4M3Scale(largest);
    scale.push_back(weight.format == ScaleFormat::kUe8m0 ? RoundUpToPowerOfTwo(exact) : exact);
  }
  for (int64_t k = 0; k < weight.cols; ++k) {
    result.q[k] = E4M3ToFloat(FloatToE4M3(static_cast<float>(x[k]) / scale[weight.ColBlock(k)]));
  }
  result.scale.assign(scale.begin(), scale.end());
  return result;
}

// Spec 4.3.
Row MultiplyFp8(const Matrix& weight, std::span<const double> x) {
  const Quantized input = Quantize(x, weight);
  Row out(static_cast<size_t>(weight.rows));
  for (int64_t n = 0; n < weight.rows; ++n) {
    Row block_sums(input.scale.size());
    const std::span<const float> w = weight.Row(n);
    for (int64_t k = 0; k < weight.cols; ++k) block_sums[weight.ColBlock(k)] += input.q[k] * w[k];
    for (size_t b = 0; b < block_sums.size(); ++b) {
      out[n] += block_sums[b] * input.scale[b] * weight.scales[n * weight.num_col_blocks + static_cast<int64_t>(b)];
    }
  }
  return out;
}

double Silu(double x) { return x / (1.0 + std::exp(-x)); }

}  // namespace

absl::StatusOr<Matrix> Decode(const HostMatrix& weight, ScaleFormat format) {
  if (weight.dtype == DType::kI32) {
    return absl::InvalidArgumentError("a weight is F32, F16, BF16 or F8_E4M3, not I32");
  }
  Matrix matrix{weight.rows, weight.cols, weight.dtype, format};
  matrix.elements.reserve(static_cast<size_t>(weight.rows * weight.cols));
  for (int64_t r = 0; r < weight.rows; ++r) {
    for (int64_t c = 0; c < weight.cols; ++c) {
      matrix.elements.push_back(static_cast<float>(ReadElement(weight.data, weight.dtype, r * weight.row_stride + c)));
    }
  }
  if (weight.dtype == DType::kF8E4M3) {
    if (absl::Status status = DecodeScales(weight, matrix); !status.ok()) return status;
  }
  return matrix;
}

Matrix Dequantized(Matrix weight) {
  if (weight.dtype != DType::kF8E4M3) return weight;
  for (int64_t r = 0; r < weight.rows; ++r) {
    for (int64_t c = 0; c < weight.cols; ++c) {
      float& element = weight.elements[r * weight.cols + c];
      element = RoundedTo(DType::kBF16, element * weight.scales[r * weight.num_col_blocks + weight.ColBlock(c)]);
    }
  }
  weight.dtype = DType::kBF16;
  weight.scales.clear();
  return weight;
}

Row Multiply(const Matrix& weight, std::span<const double> x) {
  WEIR_CHECK(static_cast<int64_t>(x.size()) == weight.cols,
             "a linear layer of " + std::to_string(weight.cols) + " inputs got " + std::to_string(x.size()));
  return weight.dtype == DType::kF8E4M3 ? MultiplyFp8(weight, x) : MultiplyPlain(weight, x);
}

absl::StatusOr<SwiGlu> Decode(const HostMlp& weight, ScaleFormat format) {
  absl::StatusOr<Matrix> gate = Decode(weight.gate, format);
  if (!gate.ok()) return gate.status();
  absl::StatusOr<Matrix> up = Decode(weight.up, format);
  if (!up.ok()) return up.status();
  absl::StatusOr<Matrix> down = Decode(weight.down, format);
  if (!down.ok()) return down.status();
  WEIR_CHECK(gate->rows == up->rows && gate->cols == up->cols && down->cols == gate->rows, "shapes of a SwiGLU");
  return SwiGlu{*std::move(gate), *std::move(up), *std::move(down)};
}

Row Apply(const SwiGlu& mlp, std::span<const double> x) {
  Row gate = Multiply(mlp.gate, x), up = Multiply(mlp.up, x);
  RoundToF32(gate);
  RoundToF32(up);
  Row hidden(gate.size());
  for (size_t i = 0; i < hidden.size(); ++i) hidden[i] = Silu(gate[i]) * up[i];
  RoundToF32(hidden);
  return Multiply(mlp.down, hidden);
}

}  // namespace weir::kernels::reference
