#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/tensor.h"

// How the reference backend sees tensors: a row at a time, every element as a double.

namespace weir::kernels::reference {

using Row = std::vector<double>;

// One element of any floating dtype, exactly.
double ReadElement(const void* data, DType dtype, int64_t index);

Row ReadRow(const TensorView& view, int64_t row);
// Rounds each element once to f32, then to the view's dtype if that is narrower; nearest, ties to even.
void WriteRow(const TensorView& view, int64_t row, std::span<const double> values);

const float* F32Row(const TensorView& view, int64_t row);
int32_t* I32Row(const TensorView& view, int64_t row);

// x[i] rounded to f32, which is what an activation is between two operations.
void RoundToF32(std::span<double> x);

double Dot(std::span<const double> a, std::span<const double> b);

}  // namespace weir::kernels::reference
