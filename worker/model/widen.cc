#include "worker/model/widen.h"

#include <cstring>

#include "kernels/check.h"
#include "kernels/float_formats.h"

namespace weir::worker {
namespace {

using kernels::DType;
using kernels::HostMatrix;

constexpr int64_t kFp8BlockSize = 128;

// Mapped tensors may lie at odd addresses.
template <typename T>
T Load(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

float Element(const HostMatrix& matrix, int64_t row, int64_t col) {
  const char* at =
      static_cast<const char*>(matrix.data) + (row * matrix.row_stride + col) * kernels::SizeOf(matrix.dtype);
  switch (matrix.dtype) {
    case DType::kF32:
      return Load<float>(at);
    case DType::kBF16:
      return kernels::BFloat16ToFloat(Load<uint16_t>(at));
    case DType::kF16:
      return kernels::Float16ToFloat(Load<uint16_t>(at));
    case DType::kF8E4M3: {
      const int64_t block =
          (matrix.first_row + row) / kFp8BlockSize * matrix.scales_stride + (matrix.first_col + col) / kFp8BlockSize;
      return kernels::E4M3ToFloat(Load<uint8_t>(at)) * matrix.scales[block];
    }
    case DType::kI32:
      break;
  }
  WEIR_CHECK(false, "not a weight's dtype");
}

}  // namespace

void WidenRow(const HostMatrix& matrix, int64_t row, float* out) {
  for (int64_t col = 0; col < matrix.cols; ++col) out[col] = Element(matrix, row, col);
}

Widened::Widened(const HostMatrix& stored, DType dtype) : matrix_(stored) {
  if (dtype == stored.dtype) return;
  WEIR_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "weights are widened to F32 or BF16");
  std::vector<float> row(stored.cols);
  for (int64_t r = 0; r < stored.rows; ++r) {
    WidenRow(stored, r, row.data());
    if (dtype == DType::kF32) {
      floats_.insert(floats_.end(), row.begin(), row.end());
    } else {
      for (const float value : row) bfloats_.push_back(kernels::FloatToBFloat16(value));
    }
  }
  matrix_ = {.dtype = dtype, .rows = stored.rows, .cols = stored.cols, .row_stride = stored.cols};
}

HostMatrix Widened::view() const {
  HostMatrix view = matrix_;
  if (!floats_.empty()) view.data = floats_.data();
  if (!bfloats_.empty()) view.data = bfloats_.data();
  return view;
}

std::vector<float> Widened::Floats() const {
  WEIR_CHECK(matrix_.dtype == DType::kF32);
  std::vector<float> values(matrix_.rows * matrix_.cols);
  for (int64_t r = 0; r < matrix_.rows; ++r) WidenRow(view(), r, values.data() + r * matrix_.cols);
  return values;
}

}  // namespace weir::worker
