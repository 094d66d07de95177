#pragma once

#include <cstdint>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/tensor.h"

// A weight in another element type than the one it is stored in.

namespace weir::worker {

// `stored` in `dtype`, dense.  Owns a copy only where the types differ; otherwise it is a view of `stored`, whose
// memory must outlive it.  FP8 is dequantised (spec 4.1): the product in f32, rounded once.  dtype is the stored one,
// kF32, or kBF16 for FP8.
class Widened {
 public:
  Widened() = default;
  Widened(const kernels::HostMatrix& stored, kernels::DType dtype);

  kernels::HostMatrix view() const;
  // All elements, row after row; dtype must be kF32.
  std::vector<float> Floats() const;

 private:
  kernels::HostMatrix matrix_;
  std::vector<float> floats_;      // kF32
  std::vector<uint16_t> bfloats_;  // kBF16
};

// One row of `matrix` as f32.
void WidenRow(const kernels::HostMatrix& matrix, int64_t row, float* out);

}  // namespace weir::worker
