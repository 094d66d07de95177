#include "tools/sim/fairness.h"

#include <gtest/gtest.h>

namespace weir::sim {
namespace {

constexpr auto kStandard = scheduler::PriorityClass::kStandard;
constexpr auto kBatch = scheduler::PriorityClass::kBatch;

class FairnessTest : public ::testing::Test {
 protected:
  FairnessTest() {
    policy_.tenants.resize(2);
    policy_.tenants[1].weight = 2;
    fairness_.SetPolicy(policy_);
    fairness_.SetCapacity(10, 10, 10);  // U = 2 x 10 tokens
  }
  void Wait(scheduler::TenantId tenant, scheduler::PriorityClass priority = kStandard) {
    fairness_.AddWaiting(tenant, priority, 5);
  }
  void Serve(scheduler::TenantId tenant, int32_t num_rows, scheduler::PriorityClass priority = kStandard) {
    fairness_.Serve(tenant, priority, {.num_prompt = num_rows});
    fairness_.Check();
  }

  scheduler::Policy policy_;
  Fairness fairness_;
};

TEST_F(FairnessTest, WeightedTurnsKeepTheGapSmall) {
  Wait(0);
  Wait(1);
  for (int i = 0; i < 100; ++i) {
    Serve(0, 10);
    Serve(1, 20);
  }
  EXPECT_TRUE(fairness_.broken_gap().empty());
  EXPECT_LE(fairness_.max_gap_over_u(), 0.5);
}

TEST_F(FairnessTest, ATenantServedAloneWhileAnotherWaitsIsNoticed) {
  Wait(0);
  Wait(1);
  for (int i = 0; i < 6; ++i) Serve(0, 10);
  EXPECT_FALSE(fairness_.broken_gap().empty());
}

TEST_F(FairnessTest, ATenantThatWantedNothingHasNoClaim) {
  Wait(0);
  for (int i = 0; i < 100; ++i) Serve(0, 10);
  Wait(1);
  Serve(0, 10);
  EXPECT_TRUE(fairness_.broken_gap().empty());
}

TEST_F(FairnessTest, AMomentWithoutRequestsBeginsANewInterval) {
  Wait(0);
  Wait(1);
  for (int i = 0; i < 20; ++i) {
    Serve(0, 10);
    fairness_.RemoveWaiting(1, kStandard);
    Wait(1);
  }
  EXPECT_TRUE(fairness_.broken_gap().empty());
}

TEST_F(FairnessTest, WhatIsComputedAgainComesOnTopOfTheBound) {
  Wait(0);
  Wait(1);
  for (int i = 0; i < 6; ++i) {
    fairness_.Serve(0, kStandard, {.num_prompt = 10, .num_recomputed = 10});
    fairness_.Check();
  }
  EXPECT_TRUE(fairness_.broken_gap().empty());
}

TEST_F(FairnessTest, AClassLeftBelowItsShareIsNoticed) {
  Wait(0, kBatch);
  Serve(0, 10, kStandard);                                // from here on it has waited all the time
  for (int i = 0; i < 108; ++i) Serve(0, 10, kStandard);  // 5 % of 1080: 5 % of 4 U, and five steps
  EXPECT_TRUE(fairness_.broken_class_share().empty());
  Serve(0, 10, kStandard);
  EXPECT_FALSE(fairness_.broken_class_share().empty());
}

}  // namespace
}  // namespace weir::sim
