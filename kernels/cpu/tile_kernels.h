#pragma once

#include <cstdint>

// The products that all the time goes into: rows of activations times panels of packed weights.
//
// A panel holds the weights of 16 outputs, for all inputs, as a run of 64-byte lines in ascending input order:
//
//   kBF16      a line = 2 inputs x 16 outputs: word 2o + i is (output o, input i)
//   kF32       a line = 1 input x 16 outputs
//   kF8E4M3    a line = 4 inputs x 16 outputs, in the order of TileKernels::order_fp8; blocks of 128 inputs (the first
//              and the last may be shorter) begin at a line of their own, padded with zeros
//
// An output is one chain of additions in ascending input order (with FP8: one per block, and one over the blocks), the
// same for every number of rows, for every blocking of rows and panels, and however the inputs are cut into calls that
// accumulate.  That is what makes a row's result independent of its batch.
//
// This header is included by files compiled for one instruction set each; it must not define functions.

namespace weir::kernels::cpu {

inline constexpr int kPanelOutputs = 16;
inline constexpr int kLineBytes = 64;
inline constexpr int kFp8BlockInputs = 128;

struct TileProduct {
  // Weights.  num_inputs counts padding: a multiple of 4.
  const uint8_t* panels = nullptr;
  int64_t panel_bytes = 0;  // from one panel to the next
  int32_t num_inputs = 0;
  int32_t num_outputs = 0;  // columns of `out`; the last panel may be partly used
  // What to prefetch, evenly over the product: the panels that follow in memory, or other memory.
  bool prefetches_next = false;
  const uint8_t* ahead = nullptr;
  int64_t ahead_bytes = 0;

  // Activations, as TileKernels::input says: BF16, or F32.  Padding inputs hold zeros.
  const uint8_t* x = nullptr;
  int64_t x_stride_bytes = 0;
  int32_t num_rows = 0;

  float* out = nullptr;
  int64_t out_stride = 0;
  bool accumulates = false;  // adds to out, as if these inputs followed those before

  // FP8: out += (sum over a block) * x_scales[row][block] * panel_scales[panel][block].
  int32_t first_block_inputs = 0;  // padded
  const float* x_scales = nullptr;
  int64_t x_scales_stride = 0;
  const float* panel_scales = nullptr;  // [panel][block], or [panel][block][16] when outputs of a panel differ
  int64_t panel_scales_stride = 0;      // floats from one panel to the next
  bool has_scale_per_output = false;
};

// What one instruction set offers.  Adding one adds an entry in isa.cc and a file of kernels.
struct TileKernels {
  enum class Input : uint8_t { kBF16, kF32 };
  // How activations for BF16 and FP8 weights are stored (their values are rounded to BF16, or are e4m3).
  // For F32 weights they are always F32.
  Input input = Input::kF32;

  void (*multiply_bf16)(const TileProduct& product) = nullptr;
  void (*multiply_bf16_by_f32)(const TileProduct& product) = nullptr;  // activations F32, not rounded
  void (*multiply_f32)(const TileProduct& product) = nullptr;
  void (*multiply_fp8)(const TileProduct& product) = nullptr;

  // Rows of 32-bit words to lines: lines[w * 16 + r] = rows[r][w], for 16 rows and w in [0, num_words).
  // `lines` is aligned to 64 bytes, the rows need not be.
  void (*transpose)(uint32_t* lines, const void* const* rows, int64_t num_words) = nullptr;
  // Lines of FP8 as `transpose` makes them (4 inputs of output 0, 4 of output 1, ...) to the order that multiply_fp8
  // takes, in place.  False when a byte is NaN.
  bool (*order_fp8)(uint32_t* lines, int64_t num_lines) = nullptr;
};

}  // namespace weir::kernels::cpu
