#include <algorithm>

#include "kernels/check.h"
#include "kernels/cpu/matrix.h"

namespace weir::kernels::cpu {
namespace {

using Kernel = void (*)(const TileProduct&);

Kernel KernelFor(const TileKernels& tiles, const Matrix& matrix) {
  if (matrix.dtype == DType::kBF16) {
    return matrix.input == DType::kF32 ? tiles.multiply_bf16_by_f32 : tiles.multiply_bf16;
  }
  return matrix.dtype == DType::kF8E4M3 ? tiles.multiply_fp8 : tiles.multiply_f32;
}

TileProduct TileOf(const Product& product) {
  const Matrix& matrix = *product.matrix;
  TileProduct tile;
  tile.panels = matrix.panels + product.first_panel * matrix.panel_stride;
  tile.panel_bytes = matrix.panel_stride;
  tile.num_inputs = matrix.padded_inputs;
  tile.num_outputs = static_cast<int32_t>(
      std::min(product.num_panels * kPanelOutputs, matrix.outputs - product.first_panel * kPanelOutputs));
  tile.prefetches_next = product.prefetches_next;
  tile.x = product.rows.x;
  tile.x_stride_bytes = product.rows.stride_bytes;
  tile.num_rows = static_cast<int32_t>(product.num_rows);
  tile.out = product.out;
  tile.out_stride = product.out_stride;
  if (matrix.dtype == DType::kF8E4M3) {
    tile.first_block_inputs = (matrix.first_block_inputs + 3) / 4 * 4;
    tile.x_scales = product.rows.scales;
    tile.x_scales_stride = product.rows.scales_stride;
    tile.panel_scales = matrix.scales + product.first_panel * matrix.scales_stride;
    tile.panel_scales_stride = matrix.scales_stride;
    tile.has_scale_per_output = matrix.has_scale_per_output;
  }
  return tile;
}

}  // namespace

void Multiply(const Machine& machine, const Product& product) {
  TileProduct tile = TileOf(product);
  const DType dtype = product.matrix->dtype;
  const Kernel kernel = KernelFor(machine.tiles, *product.matrix);
  // With many rows and many inputs the panels of a block would not stay in cache until its last rows: the inputs are
  // cut, and each cut continues the sums of the one before.  (FP8 works block by block already.)
  constexpr int32_t kInputsPerCut = 2048, kFewRows = 14;
  if (dtype == DType::kF8E4M3 || tile.num_inputs <= kInputsPerCut || product.num_rows <= kFewRows) return kernel(tile);
  const int64_t input_bytes = InputElementBytes(machine, product.matrix->input),
                line_bytes = product.matrix->panel_bytes / tile.num_inputs;
  tile.prefetches_next = false;
  for (int32_t begin = 0; begin < product.matrix->padded_inputs; begin += kInputsPerCut) {
    tile.num_inputs = std::min(kInputsPerCut, product.matrix->padded_inputs - begin);
    tile.accumulates = begin > 0;
    kernel(tile);
    tile.panels += tile.num_inputs * line_bytes;
    tile.x += tile.num_inputs * input_bytes;
  }
}

int64_t PanelsPerTask(int64_t num_panels, int32_t num_threads) {
  // Enough tasks that a thread which comes late or is interrupted leaves the others something to do; enough panels in
  // one that memory is read in long runs.
  const int64_t panels = std::clamp<int64_t>(num_panels / (num_threads * 8), 1, 16);
  return panels >= 4 ? panels / 4 * 4 : panels >= 2 ? 2 : 1;
}

void MultiplyAll(Machine& machine, const Matrix& matrix, const InputRows& rows, TensorView out) {
  WEIR_CHECK(out.dtype == DType::kF32 && out.cols == matrix.outputs);
  const int64_t row_cuts = (out.rows + kMaxRowsPerTask - 1) / kMaxRowsPerTask;
  const int64_t panels = PanelsPerTask(matrix.num_panels(), machine.pool.num_threads());
  const int64_t panel_cuts = (matrix.num_panels() + panels - 1) / panels;
  machine.pool.Run(row_cuts * panel_cuts, [&](int64_t task, int32_t) {
    const int64_t cut = task % row_cuts, first_panel = task / row_cuts * panels;
    const int64_t first_row = cut * out.rows / row_cuts, end_row = (cut + 1) * out.rows / row_cuts;
    Product product{&matrix, rows.From(first_row), end_row - first_row, first_panel};
    product.num_panels = std::min(panels, matrix.num_panels() - first_panel);
    product.out = static_cast<float*>(out.data) + first_row * out.row_stride + first_panel * kPanelOutputs;
    product.out_stride = out.row_stride;
    Multiply(machine, product);
  });
}

}  // namespace weir::kernels::cpu
