#include "gateway/text/stop_strings.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace weir::gateway {
namespace {

TEST(StopStringsTest, NeverShowsAPartOfAStopText) {
  StopStrings stops({"\n\nUser:"});
  std::string visible;
  EXPECT_FALSE(stops.Append("Hello\n", visible));
  EXPECT_EQ(visible, "Hello");
  EXPECT_FALSE(stops.Append("\nUs", visible));
  EXPECT_EQ(visible, "Hello");
  EXPECT_TRUE(stops.Append("er: more", visible));
  EXPECT_EQ(visible, "Hello");
  EXPECT_EQ(stops.found(), "\n\nUser:");
}

TEST(StopStringsTest, ShowsWhatWasHeldBackWhenItIsNoStopText) {
  StopStrings stops({"END"});
  std::string visible;
  EXPECT_FALSE(stops.Append("xEN", visible));
  EXPECT_EQ(visible, "x");
  EXPECT_FALSE(stops.Append("E", visible));
  EXPECT_EQ(visible, "xEN");
  stops.Finish(visible);
  EXPECT_EQ(visible, "xENE");
}

TEST(StopStringsTest, TheStopTextCompleteFirstEndsTheOutput) {
  StopStrings stops({"later", "now"});
  std::string visible;
  EXPECT_TRUE(stops.Append("not now but later", visible));
  EXPECT_EQ(visible, "not ");
  EXPECT_EQ(stops.found(), "now");
}

// Whatever the pieces, the visible text is what stands before the stop text that is complete first in the whole.
TEST(StopStringsTest, PiecesDoNotMatter) {
  std::mt19937 random(7);
  for (int round = 0; round < 20000; ++round) {
    const auto word = [&](int size) {
      std::string text;
      for (int i = 0; i < size; ++i) text.push_back("ab"[random() % 2]);
      return text;
    };
    const std::string text = word(static_cast<int>(random() % 16));
    std::vector<std::string> words;
    for (int i = static_cast<int>(random() % 3); i >= 0; --i) words.push_back(word(1 + static_cast<int>(random() % 5)));
    size_t first = std::string::npos;
    for (size_t end = 1; end <= text.size() && first == std::string::npos; ++end) {
      for (const auto& stop : words) {
        if (std::string_view(text).substr(0, end).ends_with(stop)) first = std::min(first, end - stop.size());
      }
    }

    StopStrings stops(words);
    std::string visible;
    bool has_stopped = false;
    for (size_t at = 0; at < text.size() && !has_stopped;) {
      const size_t take = 1 + random() % 4;
      has_stopped = stops.Append(std::string_view(text).substr(at, take), visible);
      at += take;
    }
    stops.Finish(visible);
    EXPECT_EQ(has_stopped, first != std::string::npos);
    ASSERT_EQ(visible, text.substr(0, first)) << text;
  }
}

}  // namespace
}  // namespace weir::gateway
