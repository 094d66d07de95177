#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/cpu/machine.h"

// A weight packed into panels (tile_kernels.h), and activations in the form that its product takes.

namespace weir::kernels::cpu {

constexpr int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Owns nothing.
struct Matrix {
  DType dtype = DType::kBF16;  // of the checkpoint.  F16 is kept as F32, exactly
  DType input = DType::kBF16;  // what inputs are rounded to: dtype, or F32 where they are taken as they are
  ScaleFormat format = ScaleFormat::kF32;
  int64_t outputs = 0;
  int64_t inputs = 0;

  const uint8_t* panels = nullptr;
  int64_t panel_bytes = 0;    // lines of one panel
  int64_t panel_stride = 0;   // from one panel to the next
  int32_t padded_inputs = 0;  // a multiple of 4; FP8: of each block too

  // FP8.
  int32_t first_block_inputs = 0;  // unpadded; later blocks have 128, the last what is left
  int32_t num_blocks = 0;
  const float* scales = nullptr;  // [panel][block], or [panel][block][16] when outputs of a panel differ
  int64_t scales_stride = 0;      // from one panel to the next
  bool has_scale_per_output = false;

  int64_t num_panels() const { return (outputs + kPanelOutputs - 1) / kPanelOutputs; }
};

// INVALID_ARGUMENT for a dtype that is no weight's, FP8 without scales, scales that are not finite and positive.
absl::Status CheckWeight(const HostMatrix& weight);

// Shape and strides of the packed form, with no place yet.  `has_scale_per_output` can be forced, so that two matrices
// get the same form.
Matrix LayoutOf(const HostMatrix& weight, ScaleFormat format, bool forces_scale_per_output = false);
bool NeedsScalePerOutput(const HostMatrix& weight);
int64_t PanelsBytes(const Matrix& matrix);  // without gaps between panels
int64_t ScalesCount(const Matrix& matrix);

// Fills panels and scales that `matrix` (from LayoutOf, given places and strides) points at.  INVALID_ARGUMENT for FP8
// weights that are not numbers.
absl::Status Pack(Machine& machine, const HostMatrix& weight, const Matrix& matrix);

// An FP8 weight as BF16: every element times its scale, rounded once.  `out` is dense [rows, cols].
void Dequantize(Machine& machine, const HostMatrix& weight, uint16_t* out);

// ---- activations ----

// Rows in the form that a matrix's product takes.
struct InputRows {
  uint8_t* x = nullptr;
  int64_t stride_bytes = 0;
  float* scales = nullptr;  // FP8: [row][block]
  int64_t scales_stride = 0;

  InputRows From(int64_t row) const {
    return {x + row * stride_bytes, stride_bytes, scales + row * scales_stride, scales_stride};
  }
};

// Whether inputs rounded to `input` are stored as BF16 or as F32.
bool StoresInputAsBf16(const Machine& machine, DType input);
int64_t InputElementBytes(const Machine& machine, DType input);
int64_t InputRowBytes(const Machine& machine, const Matrix& matrix);

// Rounds or quantises one row x[matrix.inputs].
void PrepareRow(const Machine& machine, const Matrix& matrix, const float* x, uint8_t* row, float* scales);
// `count` elements, where elements are independent of each other (not FP8).
void PrepareElements(const Machine& machine, DType input, const float* x, uint8_t* out, int64_t count);

// Rows of workspaces, prepared.  x is null when memory is short.
InputRows AllocateInputs(Machine& machine, const Matrix& matrix, int64_t num_rows, Workspace& inputs,
                         Workspace& scales);
InputRows PrepareInputs(Machine& machine, const Matrix& matrix, TensorView x);

// ---- products ----

// out[num_rows, panels * 16] (+)= rows * panels [first_panel, first_panel + num_panels).  `out` points at the first
// panel's first output.
struct Product {
  const Matrix* matrix = nullptr;
  InputRows rows;
  int64_t num_rows = 0;
  int64_t first_panel = 0;
  int64_t num_panels = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  bool prefetches_next = true;  // the panels that follow in memory will be read soon
};
void Multiply(const Machine& machine, const Product& product);

// out[T, N] = rows * matrix, on all threads.
void MultiplyAll(Machine& machine, const Matrix& matrix, const InputRows& rows, TensorView out);

// How rows and panels are cut into tasks; no cut changes a result.
inline constexpr int64_t kMaxRowsPerTask = 112;  // 8 blocks of 14: with 1024 inputs 230 KB, in the second-level cache
int64_t PanelsPerTask(int64_t num_panels, int32_t num_threads);

}  // namespace weir::kernels::cpu
