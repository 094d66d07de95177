#include "tests/kernels/rig.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "kernels/check.h"
#include "kernels/float_formats.h"

namespace weir::kernels {
namespace {

uint64_t HashOf(std::string_view name) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// Writes one element at `place`, which need not be aligned.
void Encode(float value, DType dtype, char* place) {
  const uint16_t half = dtype == DType::kF16 ? FloatToFloat16(value) : FloatToBFloat16(value);
  const uint8_t byte = FloatToE4M3(value);
  const int32_t integer = static_cast<int32_t>(std::isnan(value) ? 0.0f : std::clamp(value, -1e9f, 1e9f));
  switch (dtype) {
    case DType::kF32:
      return void(std::memcpy(place, &value, 4));
    case DType::kI32:
      return void(std::memcpy(place, &integer, 4));
    case DType::kF16:
    case DType::kBF16:
      return void(std::memcpy(place, &half, 2));
    case DType::kF8E4M3:
      return void(std::memcpy(place, &byte, 1));
  }
}

}  // namespace

float DecodeAt(const char* place, DType dtype) {
  float value = 0.0f;
  int32_t integer = 0;
  uint16_t half = 0;
  switch (dtype) {
    case DType::kF32:
      std::memcpy(&value, place, 4);
      return value;
    case DType::kI32:
      std::memcpy(&integer, place, 4);
      return static_cast<float>(integer);
    case DType::kF16:
      std::memcpy(&half, place, 2);
      return Float16ToFloat(half);
    case DType::kBF16:
      std::memcpy(&half, place, 2);
      return BFloat16ToFloat(half);
    case DType::kF8E4M3:
      return E4M3ToFloat(static_cast<uint8_t>(*place));
  }
  return value;
}

float RoundedTo(DType dtype, float value) {
  char place[4];
  Encode(value, dtype, place);
  return DecodeAt(place, dtype);
}

Values Pick(const Values& values, std::span<const int32_t> order) {
  Values picked(static_cast<int64_t>(order.size()), values.cols);
  for (size_t i = 0; i < order.size(); ++i) {
    std::copy_n(values.row(order[i]).begin(), values.cols, picked.row(static_cast<int64_t>(i)).begin());
  }
  return picked;
}

Random::Random(std::string_view name) : engine_(HashOf(name)) {}

Values Random::NormalValues(int64_t rows, int64_t cols, float scale) {
  Values values(rows, cols);
  for (float& x : values.data) x = Normal(scale);
  return values;
}

std::vector<int32_t> Random::Permutation(int32_t n) {
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), engine_);
  return order;
}

// ---- weights ----

HostWeight::HostWeight(Random& random, int64_t rows, int64_t cols, const WeightKind& kind, const PartOfTensor& part)
    : kind_(kind) {
  const int64_t whole_rows = part.first_row + rows + random.Below(3),
                whole_cols = part.first_col + cols + random.Below(3);
  const float unit = 1.0f / std::sqrt(static_cast<float>(std::max<int64_t>(cols, 1)));
  Values whole = random.NormalValues(whole_rows, whole_cols, kind.dtype == DType::kF8E4M3 ? 100.0f : unit);
  if (kind.dtype == DType::kF8E4M3) {
    matrix_.scales_stride = (whole_cols + 127) / 128 + random.Below(2);
    scale_bytes_.resize(static_cast<size_t>((whole_rows + 127) / 128 * matrix_.scales_stride * 4 + 1));
    char* scales = scale_bytes_.data() + (part.is_unaligned ? 1 : 0);
    for (size_t i = 0; i + 4 < scale_bytes_.size(); i += 4) {
      const float scale = random.Uniform(0.5f, 2.0f) * unit / 100.0f;
      Encode(kind.format == ScaleFormat::kUe8m0 ? RoundUpToPowerOfTwo(scale) : scale, DType::kF32, scales + i);
    }
    matrix_.scales = reinterpret_cast<const float*>(scales);
  }
  Store(whole, rows, cols, part);
}

HostWeight::HostWeight(const Values& values, const WeightKind& kind) : kind_(kind) {
  if (kind.dtype == DType::kF8E4M3) {
    matrix_.scales_stride = (values.cols + 127) / 128;
    scale_bytes_.resize(static_cast<size_t>((values.rows + 127) / 128 * matrix_.scales_stride * 4));
    for (size_t i = 0; i < scale_bytes_.size(); i += 4) Encode(1.0f, DType::kF32, scale_bytes_.data() + i);
    matrix_.scales = reinterpret_cast<const float*>(scale_bytes_.data());
  }
  Store(values, values.rows, values.cols, {});
}

void HostWeight::Store(const Values& whole, int64_t rows, int64_t cols, const PartOfTensor& part) {
  const int64_t size = SizeOf(kind_.dtype), offset = part.is_unaligned ? 1 : 0;
  bytes_.resize(whole.data.size() * static_cast<size_t>(size) + static_cast<size_t>(offset) + 1);
  for (size_t i = 0; i < whole.data.size(); ++i) {
    Encode(whole.data[i], kind_.dtype, bytes_.data() + offset + static_cast<int64_t>(i) * size);
  }
  matrix_.data = bytes_.data() + offset + (part.first_row * whole.cols + part.first_col) * size;
  matrix_.dtype = kind_.dtype;
  matrix_.rows = rows;
  matrix_.cols = cols;
  matrix_.row_stride = whole.cols;
  matrix_.first_row = part.first_row;
  matrix_.first_col = part.first_col;
  dequantized_ = Values(rows, cols);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const char* place = static_cast<const char*>(matrix_.data) + (r * whole.cols + c) * size;
      float scale = 1.0f;
      if (matrix_.scales != nullptr) {
        const int64_t block = (part.first_row + r) / 128 * matrix_.scales_stride + (part.first_col + c) / 128;
        scale = DecodeAt(reinterpret_cast<const char*>(matrix_.scales) + block * 4, DType::kF32);
      }
      dequantized_.at(r, c) = DecodeAt(place, kind_.dtype) * scale;
    }
  }
}

double HostWeight::LargestRowNorm() const {
  double largest = 0.0;
  for (int64_t r = 0; r < dequantized_.rows; ++r) {
    double sum = 0.0;
    for (const float w : dequantized_.row(r)) sum += static_cast<double>(w) * w;
    largest = std::max(largest, std::sqrt(sum));
  }
  return largest;
}

// ---- tensors ----

Values ReadTensor(Backend& backend, const TensorView& view) {
  std::vector<char> bytes(static_cast<size_t>(view.rows * view.cols * SizeOf(view.dtype)));
  backend.CopyToHost(bytes.data(), view);
  const absl::Status status = backend.Synchronize();
  WEIR_CHECK(status.ok(), std::string(status.message()));
  Values values(view.rows, view.cols);
  for (size_t i = 0; i < values.data.size(); ++i) {
    values.data[i] = DecodeAt(bytes.data() + i * static_cast<size_t>(SizeOf(view.dtype)), view.dtype);
  }
  return values;
}

void WriteTensor(Backend& backend, const TensorView& view, const Values& values) {
  std::vector<char> bytes(values.data.size() * static_cast<size_t>(SizeOf(view.dtype)));
  for (size_t i = 0; i < values.data.size(); ++i) {
    Encode(values.data[i], view.dtype, bytes.data() + i * static_cast<size_t>(SizeOf(view.dtype)));
  }
  backend.CopyToDevice(view, bytes.data());
  WEIR_CHECK(backend.Synchronize().ok());
}

TensorView Rig::Empty(int64_t rows, int64_t cols, DType dtype) {
  const int64_t width = cols + padding_, num_bytes = rows * width * SizeOf(dtype);
  absl::StatusOr<DeviceBuffer> buffer = backend_.Allocate(num_bytes);
  WEIR_CHECK(buffer.ok(), std::string(buffer.status().message()));
  const TensorView whole = buffer->View(dtype, rows, width);
  const std::vector<char> poison(static_cast<size_t>(num_bytes), '\xff');
  backend_.CopyToDevice(whole, poison.data());
  WEIR_CHECK(backend_.Synchronize().ok());
  tensors_.push_back({*std::move(buffer), whole, cols});
  return whole.Columns(0, cols);
}

TensorView Rig::Put(const Values& values, DType dtype) {
  const TensorView view = Empty(values.rows, values.cols, dtype);
  WriteTensor(backend_, view, values);
  return view;
}

TensorView Rig::PutActivation(const Values& values) {
  Values rounded = values;
  for (float& x : rounded.data) x = RoundedTo(activation_dtype_, x);
  return Put(rounded, backend_.activation_dtype());
}

std::unique_ptr<LinearWeight> Rig::Linear(const HostWeight& weight) {
  absl::StatusOr<std::unique_ptr<LinearWeight>> packed = backend_.PackLinear(weight.matrix(), weight.kind().format);
  WEIR_CHECK(packed.ok(), std::string(packed.status().message()));
  return *std::move(packed);
}

std::unique_ptr<DeviceBatch> Rig::Batch(const BatchLayout& layout) {
  std::unique_ptr<DeviceBatch> batch = backend_.NewBatch();
  backend_.Upload(*batch, layout);
  return batch;
}

std::unique_ptr<DeviceBatch> Rig::BatchAt(std::span<const int32_t> token_ids, std::span<const int32_t> positions) {
  const std::vector<int64_t> slots(token_ids.size(), 0);
  BatchLayout layout;
  layout.token_ids = token_ids;
  layout.positions = positions;
  layout.slot_mapping = slots;
  return Batch(layout);
}

bool Rig::PaddingIsIntact() {
  for (const Tensor& tensor : tensors_) {
    if (padding_ == 0) continue;
    const Values padding = Get(tensor.whole.Columns(tensor.cols, padding_));
    const bool is_integer = tensor.whole.dtype == DType::kI32;
    for (const float x : padding.data) {
      if (is_integer ? x != -1.0f : !std::isnan(x)) return false;
    }
  }
  return true;
}

Values RopeTable(int64_t max_positions, int32_t rope_head_dim) {
  Values table(max_positions, rope_head_dim);
  for (int64_t p = 0; p < max_positions; ++p) {
    for (int32_t i = 0; i + 1 < rope_head_dim; i += 2) {
      const double angle = static_cast<double>(p) * std::pow(10000.0, -static_cast<double>(i) / rope_head_dim);
      table.at(p, i) = static_cast<float>(std::cos(angle));
      table.at(p, i + 1) = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

}  // namespace weir::kernels
