#include "kernels/reference/rows.h"

#include <cstring>
#include <string>

#include "kernels/check.h"
#include "kernels/float_formats.h"

namespace weir::kernels::reference {
namespace {

// Host matrices point into mapped files and may be unaligned.
template <typename T>
T Load(const void* data, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

const char* RowStart(const TensorView& view, int64_t row) {
  WEIR_CHECK(row >= 0 && row < view.rows, "row " + std::to_string(row) + " of " + std::to_string(view.rows));
  return static_cast<const char*>(view.data) + row * view.row_stride * SizeOf(view.dtype);
}

}  // namespace

double ReadElement(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kF32:
      return Load<float>(data, index);
    case DType::kF16:
      return Float16ToFloat(Load<uint16_t>(data, index));
    case DType::kBF16:
      return BFloat16ToFloat(Load<uint16_t>(data, index));
    case DType::kF8E4M3:
      return E4M3ToFloat(Load<uint8_t>(data, index));
    case DType::kI32:
      break;
  }
  WEIR_CHECK(false, "integers are not read as floats");
}

Row ReadRow(const TensorView& view, int64_t row) {
  const char* start = RowStart(view, row);
  Row values(static_cast<size_t>(view.cols));
  for (int64_t c = 0; c < view.cols; ++c) values[c] = ReadElement(start, view.dtype, c);
  return values;
}

void WriteRow(const TensorView& view, int64_t row, std::span<const double> values) {
  WEIR_CHECK(static_cast<int64_t>(values.size()) == view.cols);
  char* start = const_cast<char*>(RowStart(view, row));
  for (int64_t c = 0; c < view.cols; ++c) {
    const float value = static_cast<float>(values[c]);
    if (view.dtype == DType::kF32) {
      std::memcpy(start + 4 * c, &value, 4);
    } else {
      WEIR_CHECK(view.dtype == DType::kBF16, "results are F32 or BF16");
      const uint16_t bits = FloatToBFloat16(value);
      std::memcpy(start + 2 * c, &bits, 2);
    }
  }
}

const float* F32Row(const TensorView& view, int64_t row) {
  WEIR_CHECK(view.dtype == DType::kF32);
  return reinterpret_cast<const float*>(RowStart(view, row));
}

int32_t* I32Row(const TensorView& view, int64_t row) {
  WEIR_CHECK(view.dtype == DType::kI32);
  return reinterpret_cast<int32_t*>(const_cast<char*>(RowStart(view, row)));
}

void RoundToF32(std::span<double> x) {
  for (double& value : x) value = static_cast<float>(value);
}

double Dot(std::span<const double> a, std::span<const double> b) {
  WEIR_CHECK(a.size() == b.size());
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace weir::kernels::reference
