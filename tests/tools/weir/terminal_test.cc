#include "tools/weir/terminal.h"

#include <gtest/gtest.h>

namespace weir::tools {
namespace {

TEST(PrintableTest, KeepsTextOfAllLanguages) { EXPECT_EQ(Printable("a\tb\nÄ 水 😀 é"), "a\tb\nÄ 水 😀 é"); }

TEST(PrintableTest, ReplacesWhatWouldSteerTheTerminal) {
  EXPECT_EQ(Printable("\033[2J"), "\xEF\xBF\xBD[2J");
  EXPECT_EQ(Printable("a\rb\x07\x7F"),
            "a\xEF\xBF\xBD"
            "b\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(Printable("\xC2\x9B"
                      "2J"),
            "\xEF\xBF\xBD"
            "2J");
}

}  // namespace
}  // namespace weir::tools
