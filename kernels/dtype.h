#pragma once

#include <cstdint>
#include <string_view>

// Element types of weights, activations and caches, with the names safetensors gives them.

namespace weir::kernels {

enum class DType : uint8_t { kF32, kF16, kBF16, kF8E4M3, kI32 };

constexpr int64_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kF8E4M3:
      return 1;
  }
  return 0;
}

// "F32", "F16", "BF16", "F8_E4M3", "I32".
constexpr std::string_view Name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kF8E4M3:
      return "F8_E4M3";
    case DType::kI32:
      return "I32";
  }
  return "?";
}

}  // namespace weir::kernels
