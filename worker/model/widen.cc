#include "worker/model/widen.h"

#include <algorithm>
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

// out[i] = convert(element i) of `count` elements of type T.
template <typename T, typename Convert>
void WidenElements(const char* bytes, int64_t count, float* out, Convert convert) {
  for (int64_t i = 0; i < count; ++i) out[i] = convert(Load<T>(bytes + i * static_cast<int64_t>(sizeof(T))));
}

// Stretches of one scale each.
void WidenFp8Row(const HostMatrix& matrix, int64_t row, const char* bytes, float* out) {
  const float* scales = matrix.scales + (matrix.first_row + row) / kFp8BlockSize * matrix.scales_stride;
  for (int64_t col = 0; col < matrix.cols;) {
    const int64_t block = (matrix.first_col + col) / kFp8BlockSize;
    const int64_t end = std::min(matrix.cols, (block + 1) * kFp8BlockSize - matrix.first_col);
    WidenElements<uint8_t>(bytes + col, end - col, out + col,
                           [scale = scales[block]](uint8_t bits) { return kernels::E4M3ToFloat(bits) * scale; });
    col = end;
  }
}

}  // namespace

void WidenRow(const HostMatrix& matrix, int64_t row, float* out) {
  const char* bytes = static_cast<const char*>(matrix.data) + row * matrix.row_stride * kernels::SizeOf(matrix.dtype);
  switch (matrix.dtype) {
    case DType::kF32:
      return WidenElements<float>(bytes, matrix.cols, out, [](float value) { return value; });
    case DType::kBF16:
      return WidenElements<uint16_t>(bytes, matrix.cols, out, kernels::BFloat16ToFloat);
    case DType::kF16:
      return WidenElements<uint16_t>(bytes, matrix.cols, out, kernels::Float16ToFloat);
    case DType::kF8E4M3:
      return WidenFp8Row(matrix, row, bytes, out);
    case DType::kI32:
      break;
  }
  WEIR_CHECK(false, "not a weight's dtype");
}

Widened::Widened(const HostMatrix& stored, DType dtype) : matrix_(stored) {
  if (dtype == stored.dtype) return;
  WEIR_CHECK(dtype == DType::kF32 || dtype == DType::kBF16, "weights are widened to F32 or BF16");
  const int64_t num_elements = stored.rows * stored.cols;
  std::vector<float> row(stored.cols);
  dtype == DType::kF32 ? floats_.resize(num_elements) : bfloats_.resize(num_elements);
  for (int64_t r = 0; r < stored.rows; ++r) {
    if (dtype == DType::kF32) {
      WidenRow(stored, r, floats_.data() + r * stored.cols);
    } else {
      WidenRow(stored, r, row.data());
      std::transform(row.begin(), row.end(), bfloats_.begin() + r * stored.cols, kernels::FloatToBFloat16);
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
