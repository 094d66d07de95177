#include "scheduler/core/fair_share.h"

#include <gtest/gtest.h>

namespace weir::scheduler {
namespace {

class FairShareTest : public testing::Test {
 protected:
  void Tenants(std::vector<double> weights) {
    std::vector<TenantPolicy> tenants;
    for (const double weight : weights) tenants.push_back({.weight = weight});
    share_.SetPolicy(tenants);
  }
  FairShare share_;
};

TEST_F(FairShareTest, ServesTheLeastServed) {
  Tenants({1, 1, 1});
  for (TenantId tenant = 0; tenant < 3; ++tenant) share_.Enter(tenant);
  EXPECT_EQ(share_.Least(), 0) << "equal: the smaller id";
  share_.Charge(0, 5);
  share_.Charge(1, 3);
  EXPECT_EQ(share_.Least(), 2);
  share_.Charge(2, 4);
  EXPECT_EQ(share_.Least(), 1);
}

TEST_F(FairShareTest, WeightDividesTheCharge) {
  Tenants({1, 4});
  share_.Enter(0);
  share_.Enter(1);
  share_.Charge(0, 10);
  share_.Charge(1, 36);
  EXPECT_EQ(share_.Least(), 1);
  EXPECT_DOUBLE_EQ(share_.counter(1), 9);
  EXPECT_DOUBLE_EQ(share_.charged(1), 36);
}

TEST_F(FairShareTest, WhoComesBackIsLiftedToTheLeastInTheQueue) {
  Tenants({1, 1, 1});
  share_.Enter(0);
  share_.Enter(1);
  share_.Charge(0, 100);
  share_.Charge(1, 70);
  share_.Enter(2);
  EXPECT_DOUBLE_EQ(share_.counter(2), 70);
  EXPECT_DOUBLE_EQ(share_.charged(2), 0);
}

TEST_F(FairShareTest, WhoComesBackWithADebtKeepsIt) {
  Tenants({1, 1});
  share_.Enter(0);
  share_.Charge(0, 100);
  share_.Leave(0);
  share_.Charge(0, 50);  // it decodes on
  share_.Enter(1);
  share_.Enter(0);
  EXPECT_DOUBLE_EQ(share_.counter(0), 150);
}

// The published artifact of VTC lifts only when somebody else is queued.
TEST_F(FairShareTest, WithAnEmptyQueueTheLastWhoLeftSetsTheLevel) {
  Tenants({1, 1});
  share_.Enter(0);
  share_.Charge(0, 1000);
  share_.Leave(0);
  share_.Enter(1);
  EXPECT_DOUBLE_EQ(share_.counter(1), 1000);
}

TEST_F(FairShareTest, TheLevelCountsThoseSetAside) {
  Tenants({1, 1, 1});
  share_.Enter(0);
  share_.Enter(1);
  share_.Charge(0, 10);
  share_.Charge(1, 30);
  share_.SetAside(0);
  EXPECT_EQ(share_.Least(), 1);
  share_.Enter(2);
  EXPECT_DOUBLE_EQ(share_.counter(2), 10);
  share_.RestoreAll();
  EXPECT_EQ(share_.Least(), 0);
}

TEST_F(FairShareTest, WhoLeavesWhileSetAsideStaysAway) {
  Tenants({1, 1});
  share_.Enter(0);
  share_.Enter(1);
  share_.SetAside(0);
  share_.Leave(0);
  share_.RestoreAll();
  EXPECT_EQ(share_.Least(), 1);
  EXPECT_FALSE(share_.is_queued(0));
  EXPECT_EQ(share_.num_queued(), 1);
}

TEST_F(FairShareTest, ANewPolicyKeepsWhatWasCharged) {
  Tenants({1});
  share_.Enter(0);
  share_.Charge(0, 10);
  Tenants({10, 1});
  share_.Enter(1);
  EXPECT_DOUBLE_EQ(share_.counter(0), 10);
  share_.Charge(0, 10);
  EXPECT_DOUBLE_EQ(share_.counter(0), 11);
}

}  // namespace
}  // namespace weir::scheduler
