#include "tools/weir/cluster/restart_policy.h"

#include <gtest/gtest.h>

namespace weir::tools {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class RestartPolicyTest : public ::testing::Test {
 protected:
  RestartPolicy policy_;
  RestartPolicy::Clock::time_point now_;
};

TEST_F(RestartPolicyTest, GivesUpAtTheThirdDeathBeforeItWasReady) {
  EXPECT_EQ(policy_.Died(now_), milliseconds(100));
  EXPECT_EQ(policy_.Died(now_ += seconds(60)), milliseconds(200));
  EXPECT_EQ(policy_.Died(now_ += seconds(60)), std::nullopt);
}

TEST_F(RestartPolicyTest, StartsAProcessThatServedForAWhileAgainAtOnceForEver) {
  for (int i = 0; i < 100; ++i) {
    policy_.Ready(now_);
    EXPECT_EQ(policy_.Died(now_ += seconds(6)), milliseconds(100));
  }
}

TEST_F(RestartPolicyTest, CountsADeathSoonAfterReadinessAsQuick) {
  for (int i = 0; i < 2; ++i) {
    policy_.Ready(now_);
    EXPECT_TRUE(policy_.Died(now_ += seconds(1)).has_value());
  }
  policy_.Ready(now_);
  EXPECT_EQ(policy_.Died(now_ += seconds(1)), std::nullopt);
}

TEST_F(RestartPolicyTest, ForgetsQuickDeathsAfterALongLife) {
  EXPECT_TRUE(policy_.Died(now_).has_value());
  EXPECT_TRUE(policy_.Died(now_).has_value());
  policy_.Ready(now_);
  EXPECT_EQ(policy_.Died(now_ += seconds(6)), milliseconds(100));
  EXPECT_EQ(policy_.Died(now_), milliseconds(100));
}

TEST_F(RestartPolicyTest, DoesNotTakeTheReadinessOfTheLifeBefore) {
  policy_.Ready(now_);
  EXPECT_TRUE(policy_.Died(now_ += seconds(6)).has_value());
  EXPECT_TRUE(policy_.Died(now_ += seconds(6)).has_value());
  EXPECT_TRUE(policy_.Died(now_ += seconds(6)).has_value());
  EXPECT_EQ(policy_.Died(now_ += seconds(6)), std::nullopt);
}

}  // namespace
}  // namespace weir::tools
