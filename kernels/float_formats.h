#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

// The number formats of weights and caches, exactly: every pattern to f32, and f32 to the nearest pattern, ties to
// even.  Backends may convert with vector instructions instead; these functions say what must come out.
//
//             sign exponent mantissa   largest finite       beyond it
//   bfloat16   1      8        7       3.39e38              infinity (IEEE)
//   float16    1      5       10       65504                infinity (IEEE)
//   e4m3       1      4        3       448, no infinities   448 (saturates); spec 4
//
// A NaN stays a NaN with its sign, quiet.

namespace weir::kernels {

inline float BFloat16ToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  // Half a unit in the last kept place, less one when that place is even: carries run into the exponent as they should.
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float Float16ToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu, mantissa = bits & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24, exact in f32
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-24f));
  }
  if (exponent == 0x1fu) {
    return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13) | (mantissa != 0 ? 0x00400000u : 0u));
  }
  return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

inline uint16_t FloatToFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7e00u | ((bits >> 13) & 0x3ffu));
  if (magnitude >= 65520.0f) return sign | 0x7c00u;  // the tie between 65504 and 65536 goes to the even one
  if (magnitude < 0x1p-14f) {                        // below the normal numbers: a multiple of 2^-24
    // Adding 2^-1 leaves exactly the multiples of 2^-24 in the mantissa; the addition itself rounds to nearest even.
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(magnitude + 0.5f) - 0x3f000000u));
  }
  const uint32_t rounded = std::bit_cast<uint32_t>(magnitude) + 0x0fffu + ((bits >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

inline float E4M3ToFloat(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24;
  const uint32_t exponent = (bits >> 3) & 0xfu, mantissa = bits & 0x7u;
  if ((bits & 0x7fu) == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent == 0) {
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-9f));
  }
  return std::bit_cast<float>(sign | ((exponent + 120u) << 23) | (mantissa << 20));
}

inline uint8_t FloatToE4M3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7fu;
  if (magnitude >= 448.0f) return sign | 0x7eu;
  if (magnitude < 0x1p-6f) {  // a multiple of 2^-9, by the same addition as above
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(magnitude + 0x1p14f) - 0x46800000u));
  }
  const uint32_t rounded = std::bit_cast<uint32_t>(magnitude) + 0x7ffffu + ((bits >> 20) & 1u);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120u << 3)));
}

// The scale of a block of activations whose largest magnitude is `amax` (spec 4.2): the divisor that brings it to 448.
// The floor keeps blocks of zeros from dividing by zero.
inline float E4M3Scale(float amax) { return std::max(amax, 1e-4f) / 448.0f; }

// The smallest power of two that is not below `scale`: what format ue8m0 can hold.  scale > 0 and normal.
inline float RoundUpToPowerOfTwo(float scale) {
  return std::bit_cast<float>((std::bit_cast<uint32_t>(scale) + 0x007fffffu) & 0x7f800000u);
}

}  // namespace weir::kernels
