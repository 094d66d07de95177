// Products in plain C++, for processors without kernels of their own: correct everywhere, as fast as the compiler's
// vectoriser makes it.
#include <cstdint>

#include "kernels/cpu/tile_kernels.h"
#include "kernels/cpu/tile_product-inl.h"
#include "kernels/cpu/tiles.h"

namespace weir::kernels::cpu {
namespace {

struct E4M3Values {
  float value[256];
};
constexpr E4M3Values MakeE4M3Values() {
  E4M3Values result{};
  for (int bits = 0; bits < 256; ++bits) {
    const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
    float value = static_cast<float>(exponent == 0 ? mantissa : 8 + mantissa) / 512.0f;
    for (int e = 1; e < exponent; ++e) value *= 2.0f;
    if ((bits & 127) == 127) value = __builtin_nanf("");
    result.value[bits] = (bits & 128) != 0 ? -value : value;
  }
  return result;
}
constexpr E4M3Values kE4M3Values = MakeE4M3Values();

struct Portable {
  struct Vec {
    float v[16];
  };
  struct Line {
    Vec even, odd;
  };
  struct Pair {
    float even, odd;
  };
  static constexpr int kPairBytes = 8;
  static constexpr int kDecodedBytes = 128;
  static constexpr float kDecodedFp8Factor = 1.0f;
  static constexpr int kRowsOfBf16[3] = {4, 0, 0};
  static constexpr int kRowsOfF32[3] = {4, 0, 0};
  static constexpr int kRowsOfFp8[3] = {4, 0, 0};

  template <class Fn>
  static Vec Make(Fn fn) {
    Vec result;
    for (int i = 0; i < 16; ++i) result.v[i] = fn(i);
    return result;
  }
  static Vec Zero() { return Set(0.0f); }
  static Vec Set(float value) {
    return Make([&](int) { return value; });
  }
  static Vec Load(const float* p) {
    return Make([&](int i) { return p[i]; });
  }
  static void Store(float* p, const Vec& v) {
    for (int i = 0; i < 16; ++i) p[i] = v.v[i];
  }
  static Vec LoadFirst(const float* p, int32_t count) {
    return Make([&](int i) { return i < count ? p[i] : 0.0f; });
  }
  static void StoreFirst(float* p, const Vec& v, int32_t count) {
    for (int i = 0; i < count; ++i) p[i] = v.v[i];
  }
  static Vec Broadcast(const float* p) { return Set(*p); }
  static Vec Multiply(const Vec& a, const Vec& b) {
    return Make([&](int i) { return a.v[i] * b.v[i]; });
  }
  static Vec MultiplyAdd(const Vec& a, const Vec& b, const Vec& c) {
    return Make([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static float FromBits(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
  }
  static Line LoadLine(const uint8_t* p) {
    const uint16_t* words = reinterpret_cast<const uint16_t*>(p);
    return {Make([&](int i) { return FromBits(static_cast<uint32_t>(words[2 * i]) << 16); }),
            Make([&](int i) { return FromBits(static_cast<uint32_t>(words[2 * i + 1]) << 16); })};
  }
  static Line LoadDecoded(const uint8_t* p) {
    const float* x = reinterpret_cast<const float*>(p);
    return {Load(x), Load(x + 16)};
  }
  static void StoreDecoded(uint8_t* p, const Line& line) {
    float* x = reinterpret_cast<float*>(p);
    Store(x, line.even);
    Store(x + 16, line.odd);
  }
  static Pair LoadPair(const uint8_t* p) {
    const float* x = reinterpret_cast<const float*>(p);
    return {x[0], x[1]};
  }
  static void AddProduct(Vec& sum, const Line& line, const Pair& pair) {
    for (int i = 0; i < 16; ++i) sum.v[i] = sum.v[i] + line.even.v[i] * pair.even;
    for (int i = 0; i < 16; ++i) sum.v[i] = sum.v[i] + line.odd.v[i] * pair.odd;
  }
  static Vec DecodeInput(const uint8_t* p) {
    return Make([&](int i) { return kE4M3Values.value[p[i]]; });
  }
  static void DecodeFp8(const uint8_t* p, Line (&line)[2]) {
    line[0] = {DecodeInput(p), DecodeInput(p + 16)};
    line[1] = {DecodeInput(p + 32), DecodeInput(p + 48)};
  }
};

void Transpose(uint32_t* lines, const void* const* rows, int64_t num_words) {
  for (int64_t word = 0; word < num_words; ++word, lines += 16) {
    for (int r = 0; r < 16; ++r) {
      __builtin_memcpy(lines + r, static_cast<const uint32_t*>(rows[r]) + word, sizeof(uint32_t));
    }
  }
}

}  // namespace

const TileKernels& PortableTiles() {
  static constexpr TileKernels kKernels{
      .input = TileKernels::Input::kF32,
      .multiply_bf16 = Multiply<Bf16Product<Portable>>,
      .multiply_bf16_by_f32 = Multiply<Bf16Product<Portable>>,
      .multiply_f32 = Multiply<F32Product<Portable>>,
      .multiply_fp8 = MultiplyFp8<Portable>,
      .transpose = Transpose,
      .order_fp8 = OrderFp8<InputMajor>,
  };
  return kKernels;
}

}  // namespace weir::kernels::cpu
