#include "tools/weir/cluster/health_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace weir::tools {
namespace {

using ::testing::HasSubstr;

TEST(HealthWatchTest, CallsAProcessHungAtTheFifthSilenceInARow) {
  HealthWatch watch;
  for (int i = 0; i < 4; ++i) EXPECT_EQ(watch.Silent(), std::nullopt) << i;
  EXPECT_THAT(watch.Silent().value_or(""), HasSubstr("no answer at /healthz for 5 s"));
}

TEST(HealthWatchTest, AnAnswerForgivesWhatWasBefore) {
  HealthWatch watch;
  for (int i = 0; i < 100; ++i) {
    for (int k = 0; k < 4; ++k) EXPECT_EQ(watch.Silent(), std::nullopt);
    watch.Answered();
    EXPECT_EQ(watch.Complained("stands still"), std::nullopt);
    watch.Answered();
  }
}

TEST(HealthWatchTest, BelievesAProcessThatSaysTwiceThatItsLoopStandsStill) {
  HealthWatch watch;
  EXPECT_EQ(watch.Complained("the loop has not turned for 5100 ms"), std::nullopt);
  EXPECT_EQ(watch.Complained("the loop has not turned for 6100 ms"),
            "hung (the loop has not turned for 6100 ms) and was killed");
}

}  // namespace
}  // namespace weir::tools
