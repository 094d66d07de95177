#include "gateway/text/utf8.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace weir::gateway {
namespace {

std::string Whole(std::string_view bytes) {
  Utf8Stream stream;
  std::string text;
  stream.Append(bytes, text);
  stream.Finish(text);
  return text;
}

TEST(Utf8StreamTest, HoldsBackAnUnfinishedCharacterAndNothingElse) {
  Utf8Stream stream;
  std::string text;
  stream.Append("a\xE4\xBD", text);
  EXPECT_EQ(text, "a");
  EXPECT_TRUE(stream.has_pending());
  stream.Append("\xA0", text);
  EXPECT_EQ(text, "a\xE4\xBD\xA0");
  EXPECT_FALSE(stream.has_pending());
}

// The examples of the Unicode standard, section 3.9, tables 3-8 to 3-11.
TEST(Utf8StreamTest, ReplacesMaximalSubparts) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(Whole("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Whole("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Whole("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(Whole("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r + r + r + r + "A");
}

TEST(Utf8StreamTest, PiecesGiveWhatAllBytesAtOnceGive) {
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes;
    const int size = static_cast<int>(random() % 12);
    for (int i = 0; i < size; ++i) {
      // Mostly bytes that matter: leads, continuations and the edges of table 3-7.
      static constexpr unsigned char kBytes[] = {0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0,
                                                 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC,
                                                 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF};
      bytes.push_back(static_cast<char>(kBytes[random() % sizeof kBytes]));
    }
    Utf8Stream stream;
    std::string text;
    for (size_t at = 0; at < bytes.size();) {
      const size_t take = 1 + random() % 3;
      stream.Append(std::string_view(bytes).substr(at, take), text);
      EXPECT_TRUE(IsValidUtf8(text));
      at += take;
    }
    stream.Finish(text);
    ASSERT_EQ(text, Whole(bytes));
  }
}

TEST(IsValidUtf8Test, RefusesOverlongSurrogatesAndEnds) {
  EXPECT_TRUE(IsValidUtf8("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x8C\x8D"));
  EXPECT_FALSE(IsValidUtf8("\xC0\x80"));
  EXPECT_FALSE(IsValidUtf8("\xED\xA0\x80"));
  EXPECT_FALSE(IsValidUtf8("\xE2\x82"));
}

}  // namespace
}  // namespace weir::gateway
