#include "kernels/float_formats.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace weir::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A narrow format seen from outside.
struct Format {
  const char* name;
  uint32_t num_patterns;
  uint32_t sign_bit;
  float (*widen)(uint32_t);
  uint32_t (*narrow)(float);
  int num_mantissa_bits;
  int min_exponent;  // of the smallest normal number
  float past_the_largest;
};

const Format kFormats[] = {
    {"bfloat16", 1u << 16, 0x8000, [](uint32_t b) { return BFloat16ToFloat(static_cast<uint16_t>(b)); },
     [](float f) -> uint32_t { return FloatToBFloat16(f); }, 7, -126, kInfinity},
    {"float16", 1u << 16, 0x8000, [](uint32_t b) { return Float16ToFloat(static_cast<uint16_t>(b)); },
     [](float f) -> uint32_t { return FloatToFloat16(f); }, 10, -14, kInfinity},
    {"e4m3", 1u << 8, 0x80, [](uint32_t b) { return E4M3ToFloat(static_cast<uint8_t>(b)); },
     [](float f) -> uint32_t { return FloatToE4M3(f); }, 3, -6, 448.0f},
};

class EveryFormat : public testing::TestWithParam<Format> {};
INSTANTIATE_TEST_SUITE_P(All, EveryFormat, testing::ValuesIn(kFormats),
                         [](const auto& param) { return std::string(param.param.name); });

// The value of a pattern, from the definition: (-1)^s * 2^(e - bias) * (1 + m / 2^bits).
double ValueByDefinition(const Format& f, uint32_t pattern) {
  const double sign = (pattern & f.sign_bit) != 0 ? -1.0 : 1.0;
  const uint32_t magnitude = pattern & (f.sign_bit - 1);
  const int exponent = static_cast<int>(magnitude >> f.num_mantissa_bits);
  const double fraction =
      std::ldexp(static_cast<double>(magnitude & ((1u << f.num_mantissa_bits) - 1)), -f.num_mantissa_bits);
  if (exponent == 0) return sign * std::ldexp(fraction, f.min_exponent);
  return sign * std::ldexp(1.0 + fraction, f.min_exponent + exponent - 1);
}

TEST_P(EveryFormat, WidensEveryPatternExactly) {
  const Format& f = GetParam();
  int num_finite = 0;
  for (uint32_t pattern = 0; pattern < f.num_patterns; ++pattern) {
    const float value = f.widen(pattern);
    if (!std::isfinite(value)) continue;
    ++num_finite;
    ASSERT_EQ(static_cast<double>(value), ValueByDefinition(f, pattern)) << pattern;
    ASSERT_EQ(std::signbit(value), (pattern & f.sign_bit) != 0) << pattern;
  }
  // What is left are the infinities and NaNs: a whole exponent in the IEEE formats, one pattern a sign in e4m3.
  const int num_special = f.past_the_largest == kInfinity ? 2 << f.num_mantissa_bits : 2;
  EXPECT_EQ(num_finite, static_cast<int>(f.num_patterns) - num_special);
}

TEST_P(EveryFormat, GivesEveryPatternBack) {
  const Format& f = GetParam();
  for (uint32_t pattern = 0; pattern < f.num_patterns; ++pattern) {
    const float value = f.widen(pattern);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(f.widen(f.narrow(value)))) << pattern;
      ASSERT_EQ(f.narrow(value) & f.sign_bit, pattern & f.sign_bit) << pattern;
    } else {
      ASSERT_EQ(f.narrow(value), pattern);
    }
  }
}

// Between two neighbours rounding is settled by three points: the middle, and the f32 values on either side of it.
TEST_P(EveryFormat, RoundsToTheNearestAndTiesToEven) {
  const Format& f = GetParam();
  for (uint32_t pattern = 0; pattern + 1 < f.sign_bit; ++pattern) {
    const float low = f.widen(pattern), high = f.widen(pattern + 1);
    if (!std::isfinite(low) || !std::isfinite(high)) break;
    const float middle = low + (high - low) / 2;
    const uint32_t even = pattern % 2 == 0 ? pattern : pattern + 1;
    for (const uint32_t sign : {0u, f.sign_bit}) {
      const float s = sign != 0 ? -1.0f : 1.0f;
      if (middle > low && middle < high) {  // exact but for bfloat16's smallest numbers
        ASSERT_EQ(f.narrow(s * middle), sign | even) << pattern;
      }
      ASSERT_EQ(f.narrow(s * std::nextafter(middle, 0.0f)), sign | pattern) << pattern;
      ASSERT_EQ(f.narrow(s * std::nextafter(middle, kInfinity)), sign | (pattern + 1)) << pattern;
    }
  }
}

TEST_P(EveryFormat, TreatsTheLargestAndBeyondAsItsDefinitionSays) {
  const Format& f = GetParam();
  for (const float sign : {1.0f, -1.0f}) {
    EXPECT_EQ(f.widen(f.narrow(sign * kInfinity)), sign * f.past_the_largest);
    EXPECT_EQ(f.widen(f.narrow(sign * std::numeric_limits<float>::max())), sign * f.past_the_largest);
    EXPECT_TRUE(std::isnan(f.widen(f.narrow(sign * std::numeric_limits<float>::quiet_NaN()))));
    EXPECT_TRUE(std::isnan(f.widen(f.narrow(sign * std::numeric_limits<float>::signaling_NaN()))));
    EXPECT_EQ(f.narrow(sign * 0.0f), sign < 0 ? f.sign_bit : 0u);
  }
}

TEST(Float16, RoundsUpToInfinityFromTheTieOn) {
  EXPECT_EQ(FloatToFloat16(65504.0f), 0x7bff);
  EXPECT_EQ(FloatToFloat16(std::nextafter(65520.0f, 0.0f)), 0x7bff);
  EXPECT_EQ(FloatToFloat16(65520.0f), 0x7c00);
}

// Spec 4.
TEST(E4M3, RoundsAsTheSpecificationLists) {
  EXPECT_EQ(FloatToE4M3(0.1f), 0x1D);
  EXPECT_EQ(E4M3ToFloat(0x1D), 0.1015625f);
  EXPECT_EQ(FloatToE4M3(-0.3f), 0xAA);
  EXPECT_EQ(E4M3ToFloat(0xAA), -0.3125f);
  const std::vector<std::pair<float, float>> roundings = {{17.0f, 16.0f},   {18.0f, 18.0f},         {19.0f, 20.0f},
                                                          {464.0f, 448.0f}, {500.0f, 448.0f},       {0.001f, 0x1p-9f},
                                                          {0x1p-10f, 0.0f}, {3 * 0x1p-10f, 0x1p-8f}};
  for (const auto& [value, rounded] : roundings) EXPECT_EQ(E4M3ToFloat(FloatToE4M3(value)), rounded) << value;
  EXPECT_EQ(E4M3ToFloat(0x7E), 448.0f);
  EXPECT_EQ(E4M3ToFloat(0x01), 0x1p-9f);
  EXPECT_EQ(E4M3ToFloat(0x08), 0x1p-6f);
}

// Spec 4.2.
TEST(E4M3Scale, FollowsTheExamplesOfTheSpecification) {
  EXPECT_EQ(E4M3Scale(1.0f), 1.0f / 448.0f);
  EXPECT_NEAR(E4M3Scale(1.0f), 0.00223214, 1e-8);
  EXPECT_EQ(RoundUpToPowerOfTwo(E4M3Scale(1.0f)), 0x1p-8f);
  EXPECT_EQ(RoundUpToPowerOfTwo(E4M3Scale(3.5f)), 0x1p-7f);
  EXPECT_EQ(RoundUpToPowerOfTwo(E4M3Scale(449.0f)), 2.0f);
  EXPECT_EQ(RoundUpToPowerOfTwo(E4M3Scale(0.0f)), 0x1p-22f);
}

TEST(RoundUpToPowerOfTwo, KeepsPowersAndRaisesEverythingElse) {
  for (int exponent = -126; exponent < 127; ++exponent) {
    const float power = std::ldexp(1.0f, exponent);
    EXPECT_EQ(RoundUpToPowerOfTwo(power), power);
    EXPECT_EQ(RoundUpToPowerOfTwo(std::nextafter(power, kInfinity)), 2 * power);
    EXPECT_EQ(RoundUpToPowerOfTwo(std::nextafter(2 * power, 0.0f)), 2 * power);
  }
}

}  // namespace
}  // namespace weir::kernels
