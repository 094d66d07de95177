#pragma once

#include <immintrin.h>

#include <cstdint>

// What both AVX-512 files share.  Internal linkage, like everything compiled for one instruction set.

namespace weir::kernels::cpu {
namespace {

struct Avx512Floats {
  using Vec = __m512;
  static Vec Zero() { return _mm512_setzero_ps(); }
  static Vec Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
  static __mmask16 FirstMask(int32_t count) { return static_cast<__mmask16>((1u << count) - 1u); }
  static Vec LoadFirst(const float* p, int32_t count) { return _mm512_maskz_loadu_ps(FirstMask(count), p); }
  static void StoreFirst(float* p, Vec v, int32_t count) { _mm512_mask_storeu_ps(p, FirstMask(count), v); }
  static Vec Broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static Vec Set(float value) { return _mm512_set1_ps(value); }
  static Vec Multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec MultiplyAdd(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
};

// f32 FMA: BF16 and FP8 weights are widened in registers.
struct Avx512 : Avx512Floats {
  struct Line {
    Vec even, odd;
  };
  struct Pair {
    Vec even, odd;
  };
  static constexpr int kPairBytes = 8;
  static constexpr int kDecodedBytes = 128;
  static constexpr float kDecodedFp8Factor = 256.0f;
  static constexpr int kRowsOfBf16[3] = {14, 12, 5};
  static constexpr int kRowsOfF32[3] = {14, 14, 6};
  static constexpr int kRowsOfFp8[3] = {14, 8, 2};

  static Line LoadLine(const uint8_t* p) {
    const __m512i words = _mm512_load_si512(p);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
  }
  static Line LoadDecoded(const uint8_t* p) { return {_mm512_load_ps(p), _mm512_load_ps(p + 64)}; }
  static void StoreDecoded(uint8_t* p, const Line& line) {
    _mm512_store_ps(p, line.even);
    _mm512_store_ps(p + 64, line.odd);
  }
  static Pair LoadPair(const uint8_t* p) {
    const float* x = reinterpret_cast<const float*>(p);
    return {_mm512_set1_ps(x[0]), _mm512_set1_ps(x[1])};
  }
  static void AddProduct(Vec& sum, const Line& line, const Pair& pair) {
    sum = _mm512_fmadd_ps(line.even, pair.even, sum);
    sum = _mm512_fmadd_ps(line.odd, pair.odd, sum);
  }
  // e4m3 has float16's layout but for its width: shifted into place it is the value times 2^-8, subnormals included.
  static Vec DecodeInput(const uint8_t* p) {
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i magnitude = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)), 7);
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
    return _mm512_cvtph_ps(_mm256_or_si256(magnitude, sign));
  }
  static void DecodeFp8(const uint8_t* p, Line (&line)[2]) {
    line[0] = {DecodeInput(p), DecodeInput(p + 16)};
    line[1] = {DecodeInput(p + 32), DecodeInput(p + 48)};
  }
};

// Sixteen words of sixteen rows, transposed in registers: within 128-bit lanes first, then the lanes.
inline void Transpose16x16(uint32_t* lines, const void* const* rows, int64_t word) {
  __m512i b[16];
#pragma GCC unroll 4
  for (int group = 0; group < 16; group += 4) {
    __m512i row[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) row[i] = _mm512_loadu_si512(static_cast<const uint32_t*>(rows[group + i]) + word);
    const __m512i a0 = _mm512_unpacklo_epi32(row[0], row[1]), a1 = _mm512_unpackhi_epi32(row[0], row[1]);
    const __m512i a2 = _mm512_unpacklo_epi32(row[2], row[3]), a3 = _mm512_unpackhi_epi32(row[2], row[3]);
    b[group + 0] = _mm512_unpacklo_epi64(a0, a2);  // lane l: word 4l of the group's rows
    b[group + 1] = _mm512_unpackhi_epi64(a0, a2);
    b[group + 2] = _mm512_unpacklo_epi64(a1, a3);
    b[group + 3] = _mm512_unpackhi_epi64(a1, a3);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i c0 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x44), c1 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xee);
    const __m512i c2 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x44);
    const __m512i c3 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xee);
    _mm512_store_si512(lines + (0 + j) * 16, _mm512_shuffle_i32x4(c0, c2, 0x88));
    _mm512_store_si512(lines + (4 + j) * 16, _mm512_shuffle_i32x4(c0, c2, 0xdd));
    _mm512_store_si512(lines + (8 + j) * 16, _mm512_shuffle_i32x4(c1, c3, 0x88));
    _mm512_store_si512(lines + (12 + j) * 16, _mm512_shuffle_i32x4(c1, c3, 0xdd));
  }
}

void TransposeAvx512(uint32_t* lines, const void* const* rows, int64_t num_words) {
  int64_t word = 0;
  for (; word + 16 <= num_words; word += 16, lines += 256) Transpose16x16(lines, rows, word);
  for (; word < num_words; ++word, lines += 16) {
    for (int r = 0; r < 16; ++r) {
      __builtin_memcpy(lines + r, static_cast<const uint32_t*>(rows[r]) + word, sizeof(uint32_t));
    }
  }
}

}  // namespace
}  // namespace weir::kernels::cpu
