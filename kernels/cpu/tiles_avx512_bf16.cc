// Products with vdpbf16ps and byte permutes.  Compiled with -mavx512bf16 -mavx512vbmi and what they need; see
// tile_product-inl.h for what such a file may include.
#include <immintrin.h>

#include "kernels/cpu/tile_kernels.h"
#include "kernels/cpu/tile_product-inl.h"
#include "kernels/cpu/tiles.h"
#include "kernels/cpu/vec_avx512-inl.h"

namespace weir::kernels::cpu {
namespace {

// High and low bytes of the BF16 value of each e4m3 magnitude; 127 is NaN.
struct Fp8Tables {
  alignas(64) uint8_t high[128];
  alignas(64) uint8_t low[128];
};
constexpr Fp8Tables MakeFp8Tables() {
  Fp8Tables tables{};
  for (int magnitude = 0; magnitude < 128; ++magnitude) {
    int exponent = magnitude >> 3, mantissa = magnitude & 7, bits = 0;
    if (magnitude == 127) {
      bits = 0x7fc0;
    } else if (exponent != 0) {
      bits = ((exponent + 120) << 7) | (mantissa << 4);
    } else if (mantissa != 0) {  // mantissa * 2^-9, normalised
      exponent = 121;
      while (mantissa < 8) {
        mantissa <<= 1;
        --exponent;
      }
      bits = (exponent << 7) | ((mantissa & 7) << 4);
    }
    tables.high[magnitude] = static_cast<uint8_t>(bits >> 8);
    tables.low[magnitude] = static_cast<uint8_t>(bits);
  }
  return tables;
}
constexpr Fp8Tables kFp8Tables = MakeFp8Tables();

struct Avx512Bf16 : Avx512Floats {
  using Line = __m512i;
  using Pair = __m512i;
  static constexpr int kPairBytes = 4;
  static constexpr int kDecodedBytes = 64;
  static constexpr float kDecodedFp8Factor = 1.0f;
  // 32 registers: sums, a line per panel, a pair (and the tables, decoding FP8).
  static constexpr int kRowsOfBf16[3] = {14, 14, 6};
  static constexpr int kRowsOfF32[3] = {14, 14, 6};
  static constexpr int kRowsOfFp8[3] = {14, 8, 3};

  static Line LoadLine(const uint8_t* p) { return _mm512_load_si512(p); }
  static Line LoadDecoded(const uint8_t* p) { return _mm512_load_si512(p); }
  static void StoreDecoded(uint8_t* p, Line line) { _mm512_store_si512(p, line); }
  static Pair LoadPair(const uint8_t* p) {
    int32_t word;
    __builtin_memcpy(&word, p, sizeof(word));
    return _mm512_set1_epi32(word);
  }
  static void AddProduct(Vec& sum, Line line, Pair pair) {
    sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(line), reinterpret_cast<__m512bh>(pair));
  }
  static void DecodeFp8(const uint8_t* p, Line (&line)[2]) {
    const __m512i bytes = _mm512_load_si512(p);
    const __m512i magnitude_high =
        _mm512_permutex2var_epi8(_mm512_load_si512(kFp8Tables.high), bytes, _mm512_load_si512(kFp8Tables.high + 64));
    const __m512i low =
        _mm512_permutex2var_epi8(_mm512_load_si512(kFp8Tables.low), bytes, _mm512_load_si512(kFp8Tables.low + 64));
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    const __m512i high = _mm512_ternarylogic_epi64(magnitude_high, bytes, sign, 0xf8);  // a | (b & c)
    line[0] = _mm512_unpacklo_epi8(low, high);
    line[1] = _mm512_unpackhi_epi8(low, high);
  }
};

}  // namespace

const TileKernels& Avx512Bf16Tiles() {
  static constexpr TileKernels kKernels{
      .input = TileKernels::Input::kBF16,
      .multiply_bf16 = Multiply<Bf16Product<Avx512Bf16>>,
      .multiply_bf16_by_f32 = Multiply<Bf16Product<Avx512>>,
      .multiply_f32 = Multiply<F32Product<Avx512Bf16>>,
      .multiply_fp8 = MultiplyFp8<Avx512Bf16>,
      .transpose = TransposeAvx512,
      .order_fp8 = OrderFp8<PairsInLanes>,
  };
  return kKernels;
}

}  // namespace weir::kernels::cpu
