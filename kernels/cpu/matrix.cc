#include "kernels/cpu/matrix.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/check.h"
#include "kernels/float_formats.h"

namespace weir::kernels::cpu {
namespace {

// Scales and rows come straight from mapped files and may be unaligned.
template <typename T>
T LoadAt(const void* data, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

const char* RowOf(const HostMatrix& weight, int64_t row) {
  return static_cast<const char*>(weight.data) + row * weight.row_stride * SizeOf(weight.dtype);
}

float ScaleOf(const HostMatrix& weight, int64_t row, int64_t block) {
  const int64_t row_block = (weight.first_row + row) / kFp8BlockInputs;
  return LoadAt<float>(weight.scales, row_block * weight.scales_stride + weight.first_col / kFp8BlockInputs + block);
}

int32_t NumBlocks(const HostMatrix& weight) {
  if (weight.cols == 0) return 0;
  return static_cast<int32_t>((weight.first_col + weight.cols - 1) / kFp8BlockInputs -
                              weight.first_col / kFp8BlockInputs + 1);
}

// ---- packing one panel ----

// The rows of one panel; outputs that do not exist read zeros.
struct PanelRows {
  const void* row[kPanelOutputs];
};

class PanelPacker {
 public:
  PanelPacker(const TileKernels& tiles, const HostMatrix& weight, const Matrix& matrix)
      : tiles_(tiles), weight_(weight), matrix_(matrix), zeros_(static_cast<size_t>(weight.cols) * 4 + 8) {}

  // False when FP8 weights hold NaN.
  bool Pack(int64_t panel) {
    uint32_t* lines = reinterpret_cast<uint32_t*>(const_cast<uint8_t*>(matrix_.panels) + panel * matrix_.panel_stride);
    PanelRows rows;
    for (int64_t o = 0; o < kPanelOutputs; ++o) {
      const int64_t output = panel * kPanelOutputs + o;
      rows.row[o] = output < weight_.rows ? static_cast<const void*>(RowOf(weight_, output)) : zeros_.data();
    }
    switch (weight_.dtype) {
      case DType::kF16:
        PackF16(lines, rows);
        return true;
      case DType::kF8E4M3:
        return PackFp8(lines, rows, panel);
      default:
        PackWords(lines, rows, weight_.cols * SizeOf(weight_.dtype), matrix_.padded_inputs * SizeOf(weight_.dtype));
        return true;
    }
  }

 private:
  // Rows of `num_bytes` to lines of words, with zeros up to `padded_bytes`.  Returns the lines after.
  uint32_t* PackWords(uint32_t* lines, const PanelRows& rows, int64_t num_bytes, int64_t padded_bytes) {
    const int64_t num_words = num_bytes / 4, rest = num_bytes % 4, padded_words = padded_bytes / 4;
    tiles_.transpose(lines, rows.row, num_words);
    std::memset(lines + num_words * 16, 0, static_cast<size_t>((padded_words - num_words) * kLineBytes));
    for (int o = 0; o < kPanelOutputs && rest > 0; ++o) {
      std::memcpy(lines + num_words * 16 + o, static_cast<const char*>(rows.row[o]) + num_words * 4,
                  static_cast<size_t>(rest));
    }
    return lines + padded_words * 16;
  }

  void PackF16(uint32_t* lines, const PanelRows& rows) {
    widened_.resize(static_cast<size_t>(kPanelOutputs * weight_.cols));
    PanelRows wide;
    for (int o = 0; o < kPanelOutputs; ++o) {
      float* row = widened_.data() + o * weight_.cols;
      for (int64_t c = 0; c < weight_.cols; ++c) row[c] = Float16ToFloat(LoadAt<uint16_t>(rows.row[o], c));
      wide.row[o] = row;
    }
    PackWords(lines, wide, weight_.cols * 4, matrix_.padded_inputs * 4);
  }

  bool PackFp8(uint32_t* lines, const PanelRows& rows, int64_t panel) {
    bool is_finite = true;
    int64_t begin = 0;
    float* scales = const_cast<float*>(matrix_.scales) + panel * matrix_.scales_stride;
    for (int32_t block = 0; block < matrix_.num_blocks; ++block) {
      const int64_t end = std::min<int64_t>(weight_.cols, matrix_.first_block_inputs + block * kFp8BlockInputs);
      PanelRows part;
      for (int o = 0; o < kPanelOutputs; ++o) part.row[o] = static_cast<const char*>(rows.row[o]) + begin;
      uint32_t* const first = lines;
      lines = PackWords(lines, part, end - begin, RoundUp(end - begin, 4));
      is_finite &= tiles_.order_fp8(first, (lines - first) / kPanelOutputs);  // while they are in the nearest cache
      begin = end;
      for (int64_t o = 0; o < (matrix_.has_scale_per_output ? kPanelOutputs : 1); ++o) {
        *scales++ = ScaleOf(weight_, std::min(panel * kPanelOutputs + o, weight_.rows - 1), block);
      }
    }
    return is_finite;
  }

  const TileKernels& tiles_;
  const HostMatrix& weight_;
  const Matrix& matrix_;
  std::vector<char> zeros_;
  std::vector<float> widened_;
};

}  // namespace

absl::Status CheckWeight(const HostMatrix& weight) {
  if (weight.dtype == DType::kI32) {
    return absl::InvalidArgumentError("a weight is F32, F16, BF16 or F8_E4M3, not I32");
  }
  if (weight.dtype != DType::kF8E4M3) return absl::OkStatus();
  if (weight.scales == nullptr) {
    return absl::InvalidArgumentError("an F8_E4M3 weight needs scales (weight_scale_inv), and this one has none");
  }
  for (int64_t row = 0; row < weight.rows;) {
    for (int32_t block = 0; block < NumBlocks(weight); ++block) {
      const float scale = ScaleOf(weight, row, block);
      if (!std::isfinite(scale) || scale <= 0.0f) {
        return absl::InvalidArgumentError("the scale of block (" +
                                          std::to_string((weight.first_row + row) / kFp8BlockInputs) + ", " +
                                          std::to_string(weight.first_col / kFp8BlockInputs + block) + ") is " +
                                          std::to_string(scale) + "; scales are finite and positive");
      }
    }
    row += kFp8BlockInputs - (weight.first_row + row) % kFp8BlockInputs;
  }
  return absl::OkStatus();
}

bool NeedsScalePerOutput(const HostMatrix& weight) {
  // A scale per output costs 64 bytes per 2 KiB of weights instead of 4, so it is used only where blocks of 128 rows
  // end inside a panel: parts that begin at a row that is no multiple of 16.
  return weight.dtype == DType::kF8E4M3 && weight.first_row % kPanelOutputs != 0;
}

Matrix LayoutOf(const HostMatrix& weight, ScaleFormat format, bool forces_scale_per_output) {
  Matrix matrix;
  matrix.dtype = matrix.input = weight.dtype;
  matrix.format = format;
  matrix.outputs = weight.rows;
  matrix.inputs = weight.cols;
  int64_t element_bytes = SizeOf(weight.dtype == DType::kF16 ? DType::kF32 : weight.dtype);
  matrix.padded_inputs = static_cast<int32_t>(RoundUp(weight.cols, 4));
  if (weight.dtype == DType::kF8E4M3) {
    matrix.first_block_inputs =
        static_cast<int32_t>(std::min<int64_t>(weight.cols, kFp8BlockInputs - weight.first_col % kFp8BlockInputs));
    matrix.num_blocks = NumBlocks(weight);
    matrix.padded_inputs = static_cast<int32_t>(RoundUp(matrix.first_block_inputs, 4) +
                                                RoundUp(weight.cols - matrix.first_block_inputs, 4));
    matrix.has_scale_per_output = forces_scale_per_output || NeedsScalePerOutput(weight);
    matrix.scales_stride = matrix.num_blocks * (matrix.has_scale_per_output ? kPanelOutputs : 1);
  }
  matrix.panel_bytes = matrix.padded_inputs * element_bytes * kPanelOutputs;
  matrix.panel_stride = matrix.panel_bytes;
  return matrix;
}

int64_t PanelsBytes(const Matrix& matrix) { return matrix.num_panels() * matrix.panel_bytes; }

int64_t ScalesCount(const Matrix& matrix) {
  return matrix.num_panels() * matrix.num_blocks * (matrix.has_scale_per_output ? kPanelOutputs : 1);
}

absl::Status Pack(Machine& machine, const HostMatrix& weight, const Matrix& matrix) {
  std::atomic<bool> has_nan{false};
  constexpr int64_t kPanelsPerTask = 8;
  machine.pool.Run((matrix.num_panels() + kPanelsPerTask - 1) / kPanelsPerTask, [&](int64_t task, int32_t) {
    PanelPacker packer(machine.tiles, weight, matrix);
    const int64_t end = std::min(matrix.num_panels(), (task + 1) * kPanelsPerTask);
    for (int64_t panel = task * kPanelsPerTask; panel < end; ++panel) {
      if (!packer.Pack(panel)) has_nan.store(true, std::memory_order_relaxed);
    }
  });
  if (has_nan.load()) {
    return absl::InvalidArgumentError("an F8_E4M3 weight holds NaN (bytes 0x7f or 0xff)");
  }
  return absl::OkStatus();
}

void Dequantize(Machine& machine, const HostMatrix& weight, uint16_t* out) {
  std::array<float, 256> values;
  for (int bits = 0; bits < 256; ++bits) values[bits] = E4M3ToFloat(static_cast<uint8_t>(bits));
  machine.ForRows(weight.rows, weight.cols, [&](int64_t r) {
    const auto* row = reinterpret_cast<const uint8_t*>(RowOf(weight, r));
    int64_t c = 0;
    for (int64_t block = 0; c < weight.cols; ++block) {
      const float scale = ScaleOf(weight, r, block);
      const int64_t end = std::min(weight.cols, (block + 1) * kFp8BlockInputs - weight.first_col % kFp8BlockInputs);
      for (; c < end; ++c) out[r * weight.cols + c] = FloatToBFloat16(values[row[c]] * scale);
    }
  });
}

bool StoresInputAsBf16(const Machine& machine, DType input) {
  return machine.tiles.input == TileKernels::Input::kBF16 && (input == DType::kBF16 || input == DType::kF8E4M3);
}

int64_t InputElementBytes(const Machine& machine, DType input) { return StoresInputAsBf16(machine, input) ? 2 : 4; }

int64_t InputRowBytes(const Machine& machine, const Matrix& matrix) {
  // An odd number of lines: the rows of a block would otherwise fall into few sets of the first-level cache.
  const int64_t bytes = RoundUp(matrix.padded_inputs * InputElementBytes(machine, matrix.input), kLineBytes);
  return bytes / kLineBytes % 2 == 0 ? bytes + kLineBytes : bytes;
}

void PrepareElements(const Machine& machine, DType input, const float* x, uint8_t* out, int64_t count) {
  if (input == DType::kBF16) {
    if (StoresInputAsBf16(machine, input)) {
      machine.ops.round_to_bf16(reinterpret_cast<uint16_t*>(out), x, count);
    } else {
      machine.ops.round_through_bf16(reinterpret_cast<float*>(out), x, count);
    }
  } else if (input == DType::kF16) {
    float* rounded = reinterpret_cast<float*>(out);
    for (int64_t i = 0; i < count; ++i) rounded[i] = Float16ToFloat(FloatToFloat16(x[i]));
  } else {
    std::memcpy(out, x, static_cast<size_t>(count) * sizeof(float));
  }
}

namespace {

void PrepareFp8Row(const Machine& machine, const Matrix& matrix, const float* x, uint8_t* row, float* scales) {
  const int64_t element_bytes = InputElementBytes(machine, matrix.input);
  int64_t begin = 0;
  for (int32_t block = 0; block < matrix.num_blocks; ++block) {
    const int64_t end = std::min<int64_t>(matrix.inputs, matrix.first_block_inputs + block * kFp8BlockInputs);
    const int64_t count = end - begin, padded = RoundUp(count, 4);
    scales[block] =
        element_bytes == 2
            ? machine.ops.quantize_to_bf16(reinterpret_cast<uint16_t*>(row), x + begin, count, matrix.format)
            : machine.ops.quantize_to_f32(reinterpret_cast<float*>(row), x + begin, count, matrix.format);
    std::memset(row + count * element_bytes, 0, static_cast<size_t>((padded - count) * element_bytes));
    row += padded * element_bytes;
    begin = end;
  }
}

}  // namespace

void PrepareRow(const Machine& machine, const Matrix& matrix, const float* x, uint8_t* row, float* scales) {
  if (matrix.input == DType::kF8E4M3) return PrepareFp8Row(machine, matrix, x, row, scales);
  const int64_t element_bytes = InputElementBytes(machine, matrix.input);
  PrepareElements(machine, matrix.input, x, row, matrix.inputs);
  std::memset(row + matrix.inputs * element_bytes, 0,
              static_cast<size_t>((matrix.padded_inputs - matrix.inputs) * element_bytes));
}

InputRows AllocateInputs(Machine& machine, const Matrix& matrix, int64_t num_rows, Workspace& inputs,
                         Workspace& scales) {
  InputRows rows;
  rows.stride_bytes = InputRowBytes(machine, matrix);
  rows.scales_stride = matrix.num_blocks;
  rows.x = inputs.Get<uint8_t>(num_rows * rows.stride_bytes, machine.error);
  rows.scales = scales.Get<float>(num_rows * rows.scales_stride, machine.error);
  if (rows.scales == nullptr) rows.x = nullptr;
  return rows;
}

InputRows PrepareInputs(Machine& machine, const Matrix& matrix, TensorView x) {
  const InputRows rows = AllocateInputs(machine, matrix, x.rows, machine.inputs, machine.input_scales);
  if (rows.x == nullptr) return rows;
  machine.ForRows(x.rows, x.cols, [&](int64_t r) {
    const InputRows row = rows.From(r);
    PrepareRow(machine, matrix, static_cast<const float*>(x.data) + r * x.row_stride, row.x, row.scales);
  });
  return rows;
}

}  // namespace weir::kernels::cpu
