#pragma once

#include <cstdint>

#include "worker/checkpoint/tensor_table.h"

// FP8 tensors have one scale per 128 x 128 block of the whole tensor; a part needs those of the blocks it touches.

namespace weir::worker {

inline constexpr int64_t kScaleBlock = 128;

constexpr int64_t NumScaleBlocks(int64_t size) { return (size + kScaleBlock - 1) / kScaleBlock; }

struct ScaleBlocks {
  int64_t first_row = 0, rows = 0;
  int64_t first_col = 0, cols = 0;
};

constexpr ScaleBlocks ScaleBlocksOf(const TensorPart& part) {
  if (part.rows == 0 || part.cols == 0) return {};
  const int64_t first_row = part.first_row / kScaleBlock;
  const int64_t first_col = part.first_col / kScaleBlock;
  return {first_row, NumScaleBlocks(part.first_row + part.rows) - first_row, first_col,
          NumScaleBlocks(part.first_col + part.cols) - first_col};
}

}  // namespace weir::worker
