// Products with 256-bit f32 FMA: a line is two registers.  Compiled with -mavx2 -mfma -mf16c; see tile_product-inl.h
// for what such a file may include.
#include <immintrin.h>

#include "kernels/cpu/tile_kernels.h"
#include "kernels/cpu/tile_product-inl.h"
#include "kernels/cpu/tiles.h"

namespace weir::kernels::cpu {
namespace {

struct Avx2 {
  struct Vec {
    __m256 low, high;
  };
  struct Line {
    Vec even, odd;
  };
  struct Pair {
    __m256 even, odd;
  };
  static constexpr int kPairBytes = 8;
  static constexpr int kDecodedBytes = 128;
  static constexpr float kDecodedFp8Factor = 256.0f;
  // 16 registers, two to a vector.
  static constexpr int kRowsOfBf16[3] = {4, 1, 0};
  static constexpr int kRowsOfF32[3] = {6, 2, 0};
  static constexpr int kRowsOfFp8[3] = {3, 1, 0};

  static Vec Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Vec Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void Store(float* p, const Vec& v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
  }
  static __m256i FirstMask(int32_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Vec LoadFirst(const float* p, int32_t count) {
    return {_mm256_maskload_ps(p, FirstMask(count)), _mm256_maskload_ps(p + 8, FirstMask(count - 8))};
  }
  static void StoreFirst(float* p, const Vec& v, int32_t count) {
    _mm256_maskstore_ps(p, FirstMask(count), v.low);
    _mm256_maskstore_ps(p + 8, FirstMask(count - 8), v.high);
  }
  static Vec Broadcast(const float* p) { return Set(*p); }
  static Vec Set(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static Vec Multiply(const Vec& a, const Vec& b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static Vec MultiplyAdd(const Vec& a, const Vec& b, const Vec& c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }

  static __m256 Even(__m256i words) { return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)); }
  static __m256 Odd(__m256i words) {
    return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static Line LoadLine(const uint8_t* p) {
    const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(p + 32));
    return {{Even(low), Even(high)}, {Odd(low), Odd(high)}};
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
    return {_mm256_broadcast_ss(x), _mm256_broadcast_ss(x + 1)};
  }
  static void AddProduct(Vec& sum, const Line& line, const Pair& pair) {
    sum.low = _mm256_fmadd_ps(line.even.low, pair.even, sum.low);
    sum.high = _mm256_fmadd_ps(line.even.high, pair.even, sum.high);
    sum.low = _mm256_fmadd_ps(line.odd.low, pair.odd, sum.low);
    sum.high = _mm256_fmadd_ps(line.odd.high, pair.odd, sum.high);
  }
  // e4m3 has float16's layout but for its width: shifted into place it is the value times 2^-8, subnormals included.
  static Vec DecodeInput(const uint8_t* p) {
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i magnitude = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)), 7);
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
    const __m256i halves = _mm256_or_si256(magnitude, sign);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
  }
  static void DecodeFp8(const uint8_t* p, Line (&line)[2]) {
    line[0] = {DecodeInput(p), DecodeInput(p + 16)};
    line[1] = {DecodeInput(p + 32), DecodeInput(p + 48)};
  }
};

// Eight words of eight rows, to the columns of eight lines.
void Transpose8x8(uint32_t* lines, const void* const* rows, int64_t word) {
  __m256i row[8], a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    row[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint32_t*>(rows[i]) + word));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_epi32(row[i], row[i + 1]);
    a[i + 1] = _mm256_unpackhi_epi32(row[i], row[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {  // lane l of b[i + j]: word 4l + j of rows i to i + 3
    b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(lines + j * 16), _mm256_permute2x128_si256(b[j], b[4 + j], 0x20));
    _mm256_store_si256(reinterpret_cast<__m256i*>(lines + (4 + j) * 16),
                       _mm256_permute2x128_si256(b[j], b[4 + j], 0x31));
  }
}

void Transpose(uint32_t* lines, const void* const* rows, int64_t num_words) {
  int64_t word = 0;
  for (; word + 8 <= num_words; word += 8, lines += 128) {
    Transpose8x8(lines, rows, word);
    Transpose8x8(lines + 8, rows + 8, word);
  }
  for (; word < num_words; ++word, lines += 16) {
    for (int r = 0; r < 16; ++r) {
      __builtin_memcpy(lines + r, static_cast<const uint32_t*>(rows[r]) + word, sizeof(uint32_t));
    }
  }
}

}  // namespace

const TileKernels& Avx2Tiles() {
  static constexpr TileKernels kKernels{
      .input = TileKernels::Input::kF32,
      .multiply_bf16 = Multiply<Bf16Product<Avx2>>,
      .multiply_bf16_by_f32 = Multiply<Bf16Product<Avx2>>,
      .multiply_f32 = Multiply<F32Product<Avx2>>,
      .multiply_fp8 = MultiplyFp8<Avx2>,
      .transpose = Transpose,
      .order_fp8 = OrderFp8<InputMajor>,
  };
  return kKernels;
}

}  // namespace weir::kernels::cpu
