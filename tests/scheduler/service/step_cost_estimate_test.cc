#include "scheduler/service/step_cost_estimate.h"

#include <gtest/gtest.h>

#include <random>

namespace weir::scheduler {
namespace {

// A machine that is nothing like the defaults: a processor in place of an accelerator.
constexpr StepCost kMachine = {
    .fixed_us = 9000, .us_per_prompt_token = 1700, .us_per_generated_token = 6000, .us_per_context_token = 0.8};

TimeUs TimeOf(const StepCost& cost, const StepSize& size) {
  return static_cast<TimeUs>(cost.fixed_us + cost.us_per_prompt_token * static_cast<double>(size.num_prompt_rows) +
                             cost.us_per_generated_token * static_cast<double>(size.num_generated_rows) +
                             cost.us_per_context_token * size.num_context);
}

// Steps of a replica at work: mostly decoding, now and then with prompts.  The same ones in every run.
class Steps {
 public:
  explicit Steps(StepCostEstimate* estimate) : estimate_(estimate) {}

  // `stalled`: one step in so many takes a hundred times as long.
  void Run(const StepCost& machine, int num, int stalled = 0) {
    for (int i = 1; i <= num; ++i) {
      StepSize size{.num_prompt_rows = Draw(3) == 0 ? Draw(256) : 0, .num_generated_rows = Draw(17)};
      size.num_context = static_cast<double>(size.num_prompt_rows + size.num_generated_rows) * Draw(4000);
      TimeUs took = TimeOf(machine, size) * (80 + Draw(41)) / 100;  // give or take a fifth
      if (stalled > 0 && i % stalled == 0) took *= 100;
      Record(size, took);
    }
  }
  void RunCanaries(const StepCost& machine, int num) {
    for (int i = 0; i < num; ++i) {
      now_ += 10'000'000;
      Record({.num_prompt_rows = 1}, TimeOf(machine, {.num_prompt_rows = 1}));
    }
  }
  void Record(const StepSize& size, TimeUs took) {
    now_ += took;
    num_changes_ += estimate_->Record(now_, size, took) ? 1 : 0;
  }
  int num_changes() const { return num_changes_; }

 private:
  int64_t Draw(int64_t below) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(below)); }

  StepCostEstimate* const estimate_;
  std::mt19937_64 random_{7};
  TimeUs now_ = 1;
  int num_changes_ = 0;
};

void ExpectNear(const StepCost& cost, const StepCost& machine, double tolerance) {
  for (const StepSize& size : {StepSize{.num_generated_rows = 8, .num_context = 8 * 2000},
                               StepSize{.num_prompt_rows = 128, .num_context = 128 * 2000},
                               StepSize{.num_prompt_rows = 200, .num_generated_rows = 12, .num_context = 0}}) {
    const auto expected = static_cast<double>(TimeOf(machine, size));
    EXPECT_NEAR(static_cast<double>(TimeOf(cost, size)), expected, tolerance * expected)
        << size.num_prompt_rows << " prompt rows, " << size.num_generated_rows << " generated";
  }
  EXPECT_NEAR(cost.us_per_prompt_token, machine.us_per_prompt_token, 2 * tolerance * machine.us_per_prompt_token);
}

TEST(StepCostEstimateTest, BeginsWithWhatIsAssumedAndChangesNothingWhileThatHolds) {
  const StepCost assumed = kMachine;
  StepCostEstimate estimate(assumed);
  Steps steps(&estimate);
  steps.Run(kMachine, 5000);
  ExpectNear(estimate.cost(), kMachine, 0.15);
  EXPECT_LT(steps.num_changes(), 30) << "the core hears of what matters only";
}

TEST(StepCostEstimateTest, LearnsAMachineThatIsAHundredTimesSlowerThanAssumed) {
  StepCostEstimate estimate({});
  Steps steps(&estimate);
  steps.Run(kMachine, 2000);
  ExpectNear(estimate.cost(), kMachine, 0.15);
}

TEST(StepCostEstimateTest, LearnsAMachineThatIsFasterThanAssumed) {
  const StepCost fast = {
      .fixed_us = 900, .us_per_prompt_token = 3, .us_per_generated_token = 20, .us_per_context_token = 0.0005};
  StepCostEstimate estimate({});
  Steps steps(&estimate);
  steps.Run(fast, 3000);
  ExpectNear(estimate.cost(), fast, 0.15);
}

TEST(StepCostEstimateTest, StallsAreNotTakenForThePace) {
  StepCostEstimate estimate(kMachine);
  Steps steps(&estimate);
  steps.Run(kMachine, 4000, 20);
  ExpectNear(estimate.cost(), kMachine, 0.35);
}

// One row in each step: what a step and what a row costs cannot be told apart, and the larger part takes the most.
TEST(StepCostEstimateTest, OfPartsThatCannotBeToldApartTheLargerGrows) {
  StepCostEstimate estimate({});
  Steps steps(&estimate);
  for (int i = 0; i < 400; ++i) steps.Record({.num_generated_rows = 1, .num_context = 10}, 20'000);
  EXPECT_GT(estimate.cost().fixed_us, 15'000);
  EXPECT_NEAR(static_cast<double>(TimeOf(estimate.cost(), {.num_generated_rows = 1, .num_context = 10})), 20'000, 1000);
}

TEST(StepCostEstimateTest, FollowsAMachineThatChanges) {
  StepCostEstimate estimate(kMachine);
  Steps steps(&estimate);
  StepCost slower = kMachine;
  slower.fixed_us *= 3;
  slower.us_per_prompt_token *= 3;
  slower.us_per_generated_token *= 3;
  slower.us_per_context_token *= 3;
  steps.Run(slower, 4000);
  ExpectNear(estimate.cost(), slower, 0.15);
  steps.Run(kMachine, 4000);
  ExpectNear(estimate.cost(), kMachine, 0.15);
}

TEST(StepCostEstimateTest, MovesByNoMoreThanAFactorOfTwoAtATime) {
  StepCostEstimate estimate({});
  Steps steps(&estimate);
  StepCost before = estimate.cost();
  for (int i = 0; i < 2000; ++i) {
    steps.Run(kMachine, 1);
    const StepCost after = estimate.cost();
    EXPECT_LE(after.us_per_prompt_token, 2.2 * before.us_per_prompt_token);  // two, and what was not told before
    EXPECT_LE(after.fixed_us, 2.2 * before.fixed_us);
    before = after;
  }
}

// Else it would go on to refuse whatever could show that prompts are computed faster by now.
TEST(StepCostEstimateTest, WhatNoStepConfirmsSinksToWhatWasAssumed) {
  StepCostEstimate estimate({});
  Steps steps(&estimate);
  steps.Run(kMachine, 2000);
  ASSERT_GT(estimate.cost().us_per_prompt_token, 1000);
  steps.RunCanaries(StepCost(), 120);  // twenty minutes
  EXPECT_LT(estimate.cost().us_per_prompt_token, 60);
  EXPECT_LT(estimate.cost().fixed_us, 3000);
}

TEST(StepCostEstimateTest, StaysSoundWhateverIsMeasured) {
  StepCostEstimate estimate({.fixed_us = 0, .us_per_prompt_token = 0});
  Steps steps(&estimate);
  Policy policy;
  for (const TimeUs took : {TimeUs{0}, TimeUs{-5}, TimeUs{1} << 60, TimeUs{1}}) {
    for (int i = 0; i < 500; ++i) {
      estimate.Record(i + 1, {.num_prompt_rows = i % 7, .num_generated_rows = i % 3, .num_context = 1e12}, took);
      policy.step_cost = estimate.cost();
      ASSERT_EQ(FindPolicyError(policy), "");
    }
  }
}

}  // namespace
}  // namespace weir::scheduler
