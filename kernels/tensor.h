#pragma once

#include <cstdint>

#include "kernels/dtype.h"

// Views of matrices.  They own nothing and cost nothing to copy.

namespace weir::kernels {

// A matrix in the memory of a Backend.  `data` is opaque: only that backend may follow it.
// Row-major; element (r, c) lies r * row_stride + c elements after `data`.  Tensors with more axes are matrices whose
// columns are the flattened inner axes: q[T, H, 192] is rows = T, cols = H * 192.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;  // elements

  // Rows [first, first + count).
  TensorView Rows(int64_t first, int64_t count) const {
    return {static_cast<char*>(data) + first * row_stride * SizeOf(dtype), dtype, count, cols, row_stride};
  }
  // Columns [first, first + count) of every row.
  TensorView Columns(int64_t first, int64_t count) const {
    return {static_cast<char*>(data) + first * SizeOf(dtype), dtype, rows, count, row_stride};
  }
};

// A weight matrix in host memory, as it lies in a checkpoint file: the rows and columns that one rank keeps of a tensor
// [out, in].  Read only while packing.
//
// FP8 (kF8E4M3) needs `scales`: one f32 multiplier per 128 x 128 block of the *whole* tensor, row-major with
// `scales_stride` entries a row.  `data` points at the kept part; `first_row` and `first_col` say where in the tensor
// it begins, so that element (r, c) of the part has the scale of block ((first_row + r) / 128, (first_col + c) / 128).
// Parts need not begin on a block's edge.
struct HostMatrix {
  const void* data = nullptr;
  DType dtype = DType::kBF16;  // kF32, kF16, kBF16 or kF8E4M3
  int64_t rows = 0;            // outputs
  int64_t cols = 0;            // inputs
  int64_t row_stride = 0;      // elements between rows of `data`

  const float* scales = nullptr;
  int64_t scales_stride = 0;
  int64_t first_row = 0;
  int64_t first_col = 0;
};

}  // namespace weir::kernels
