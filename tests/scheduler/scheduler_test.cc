#include "scheduler/core/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

// What the scenario scripts (tests/scenarios) do not show: the face of the class itself.

namespace weir::scheduler {
namespace {

Policy TenantsOf(int num_tenants) {
  Policy policy;
  policy.tenants.resize(num_tenants);
  return policy;
}

class SchedulerTest : public testing::Test {
 protected:
  SchedulerTest() : core_({.block_size = 4, .max_num_seqs = 4, .max_num_batched_tokens = 32}, TenantsOf(3)) {}

  void Apply(const Event& event) { core_.Apply(now_, event, outputs_); }
  void Add(RequestId id, int num_prompt_tokens, int max_tokens, TimeUs deadline = kNever) {
    Arrival arrival{.id = id, .deadline = deadline, .max_tokens = max_tokens};
    arrival.prompt.assign(num_prompt_tokens, 5);
    Apply(arrival);
  }
  StepPlan Plan() {
    StepPlan plan;
    core_.Plan(now_, plan, outputs_);
    return plan;
  }
  static StepCompleted ResultOf(const StepPlan& plan, TokenId token = 9) {
    StepCompleted completed{.epoch = plan.epoch, .step = plan.step};
    for (const PlannedWork& work : plan.work) {
      if (work.samples) completed.sampled.push_back({.dp_group = work.dp_group, .slot = work.slot, .token = token});
    }
    return completed;
  }
  template <typename Kind>
  std::vector<Kind> Take() {
    std::vector<Kind> taken;
    for (const Output& output : outputs_) {
      if (const Kind* kind = std::get_if<Kind>(&output)) taken.push_back(*kind);
    }
    outputs_.clear();
    return taken;
  }

  Scheduler core_;
  TimeUs now_ = 0;
  std::vector<Output> outputs_;
};

TEST_F(SchedulerTest, PlansNothingWithoutAGroupOrWithoutWork) {
  Add(1, 3, 1);
  EXPECT_TRUE(Plan().work.empty());
  Apply(GroupFormed{.epoch = 1, .blocks_per_dp_group = 8});
  EXPECT_EQ(Plan().work.size(), 1u);
  EXPECT_TRUE(Plan().work.empty());
}

TEST_F(SchedulerTest, ClearsThePlanItDoesNotMake) {
  StepPlan plan;
  plan.step = 7;
  plan.work.resize(3);
  EXPECT_FALSE(core_.Plan(now_, plan, outputs_));
  EXPECT_EQ(plan.step, 0u);
  EXPECT_TRUE(plan.work.empty());
}

TEST_F(SchedulerTest, KnowsTheTokensOfALiveRequest) {
  Apply(GroupFormed{.epoch = 1, .blocks_per_dp_group = 8});
  Add(1, 2, 3);
  Apply(ResultOf(Plan(), 8));
  EXPECT_THAT(core_.tokens(1), testing::ElementsAre(5, 5, 8));
  Apply(Cancel{.id = 1});
  EXPECT_TRUE(core_.tokens(1).empty());
  EXPECT_TRUE(core_.tokens(2).empty());
}

TEST_F(SchedulerTest, WakesAtTheEarliestDeadlineOfALiveRequest) {
  EXPECT_EQ(core_.wake_time(), kNever);
  Add(1, 2, 3, 500000);
  Add(2, 2, 3, 400000);
  Add(3, 2, 3);
  EXPECT_EQ(core_.wake_time(), 400000);
  Apply(Cancel{.id = 2});
  EXPECT_EQ(core_.wake_time(), 500000);
  now_ = 500000;
  Apply(Tick{});
  EXPECT_EQ(core_.wake_time(), kNever);
  EXPECT_EQ(Take<Finished>().size(), 2u);
}

TEST_F(SchedulerTest, ARepeatedIdIsRefusedAndTheFirstGoesOn) {
  Apply(GroupFormed{.epoch = 1, .blocks_per_dp_group = 8});
  Add(1, 2, 1);
  Add(1, 2, 1);
  ASSERT_EQ(Take<Refused>().size(), 1u);
  Apply(ResultOf(Plan()));
  EXPECT_EQ(Take<Finished>().size(), 1u);
}

TEST_F(SchedulerTest, AnotherCostOfStepsDecidesFromThenOnWhoIsInTime) {
  Apply(GroupFormed{.epoch = 1, .blocks_per_dp_group = 80});
  Policy policy = TenantsOf(3);
  policy.step_cost = {.fixed_us = 1000, .us_per_prompt_token = 1};
  Apply(PolicyChanged{policy});
  Add(1, 40, 1, 5000);
  EXPECT_TRUE(Take<Refused>().empty());
  policy.step_cost.fixed_us = 10000;
  Apply(PolicyChanged{policy});
  Add(2, 40, 1, 5000);
  const std::vector<Refused> refused = Take<Refused>();
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].reason, RefusalReason::kDeadline);
  Plan();
  const std::vector<Finished> finished = Take<Finished>();
  ASSERT_EQ(finished.size(), 1u) << "who was let in and can no longer be in time is not computed";
  EXPECT_EQ(finished[0].reason, FinishReason::kDeadline);
}

TEST_F(SchedulerTest, CountsTheWaitingByWhatTheyWaitFor) {
  Apply(GroupFormed{.epoch = 1, .blocks_per_dp_group = 8});
  Add(1, 20, 12);
  EXPECT_EQ(core_.stats().num_waiting, 1);
  Apply(ResultOf(Plan()));
  Add(2, 13, 1);
  Add(3, 13, 1);
  Plan();
  EXPECT_EQ(core_.stats().num_waiting, 2);
  EXPECT_EQ(core_.stats().num_waiting_for_blocks, 2) << "both are tried, neither fits beside the first";
  Apply(WorkerLost{.epoch = 1});
  EXPECT_EQ(core_.stats().num_recovering, 1);
  Apply(Cancel{.id = 1});
  Apply(Cancel{.id = 2});
  EXPECT_EQ(core_.stats().num_recovering, 0);
  EXPECT_EQ(core_.stats().num_waiting_for_blocks, 1);
  EXPECT_EQ(core_.CheckBooks(), "");
}

TEST_F(SchedulerTest, WhoIsKeptOutByAFullGroupWaitsForASlotAndTheRestForTheirTurn) {
  Apply(GroupFormed{.epoch = 1, .blocks_per_dp_group = 80});
  for (RequestId id = 1; id <= 7; ++id) Add(id, 2, 9);
  Apply(ResultOf(Plan()));
  Plan();
  EXPECT_EQ(core_.stats().num_waiting, 3);
  EXPECT_EQ(core_.stats().num_waiting_for_slots, 1);
  EXPECT_EQ(core_.stats().num_waiting_for_blocks, 0);
  EXPECT_EQ(core_.CheckBooks(), "");
}

TEST_F(SchedulerTest, APreemptedRequestCountsAsSuchUntilItRunsAgain) {
  Apply(GroupFormed{.epoch = 1, .blocks_per_dp_group = 6});
  Add(1, 8, 12);
  Add(2, 8, 12);
  for (int i = 0; i < 30 && core_.stats().num_preempted == 0; ++i) Apply(ResultOf(Plan()));
  EXPECT_EQ(core_.stats().num_preempted, 1);
  EXPECT_EQ(core_.CheckBooks(), "");
  for (int i = 0; i < 40; ++i) Apply(ResultOf(Plan()));
  EXPECT_EQ(Take<Finished>().size(), 2u);
  EXPECT_EQ(core_.stats().num_preempted, 0);
  EXPECT_EQ(core_.CheckBooks(), "");
}

TEST_F(SchedulerTest, CountsTheRowsThatWereRunForARequest) {
  Apply(GroupFormed{.epoch = 1, .blocks_per_dp_group = 8});
  Add(1, 6, 3);
  for (int i = 0; i < 3; ++i) Apply(ResultOf(Plan()));
  const std::vector<Finished> finished = Take<Finished>();
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_EQ(finished[0].num_computed_tokens, 8) << "the last token is never computed";
  EXPECT_EQ(finished[0].num_output_tokens, 3);
  EXPECT_EQ(core_.stats().prompt_tokens_computed, 6);
  EXPECT_EQ(core_.stats().generated_tokens_computed, 2);
  EXPECT_EQ(core_.stats().tokens_emitted, 3);
}

TEST_F(SchedulerTest, ReleasedSlotsAreToldOnceAndMayBeReusedInTheSamePlan) {
  Apply(GroupFormed{.epoch = 1, .blocks_per_dp_group = 8});
  Add(1, 3, 1);
  const StepPlan first = Plan();
  Apply(ResultOf(first));
  EXPECT_TRUE(Plan().released.empty()) << "nothing was planned, so nothing was told";
  Add(2, 3, 2);
  const StepPlan second = Plan();
  ASSERT_EQ(second.released.size(), 1u);
  EXPECT_EQ(second.released[0].slot, first.work[0].slot);
  EXPECT_EQ(second.work[0].slot, first.work[0].slot);
  Apply(ResultOf(second));
  EXPECT_TRUE(Plan().released.empty());
}

TEST_F(SchedulerTest, AWorkerLossOfAnotherEpochChangesNothing) {
  Apply(GroupFormed{.epoch = 3, .blocks_per_dp_group = 8});
  Add(1, 3, 2);
  Plan();
  Apply(WorkerLost{.epoch = 2});
  EXPECT_EQ(core_.stats().num_running, 1);
  Apply(WorkerLost{.epoch = 3});
  EXPECT_EQ(core_.stats().num_running, 0);
  EXPECT_EQ(core_.stats().blocks_total, 0);
  Apply(WorkerLost{.epoch = 3});
  EXPECT_EQ(core_.Sequences().size(), 1u);
}

TEST_F(SchedulerTest, AnOldGroupDoesNotFormAgainAndANewOneReplacesTheStandingOne) {
  Apply(GroupFormed{.epoch = 3, .blocks_per_dp_group = 8});
  Add(1, 3, 2);
  const StepPlan plan = Plan();
  Apply(GroupFormed{.epoch = 3, .blocks_per_dp_group = 99});
  EXPECT_EQ(core_.stats().blocks_total, 8);
  Apply(GroupFormed{.epoch = 4, .blocks_per_dp_group = 16});
  EXPECT_EQ(core_.stats().blocks_total, 16);
  Apply(ResultOf(plan));
  EXPECT_TRUE(Take<Token>().empty());
  const StepPlan again = Plan();
  EXPECT_EQ(again.epoch, 4u);
  EXPECT_EQ(again.step, 1u);
}

TEST_F(SchedulerTest, TheServiceOfAParentIsThatOfItsSubtree) {
  Policy policy = TenantsOf(4);
  policy.tenants[1].parent = 0;
  policy.tenants[2].parent = 1;
  Apply(PolicyChanged{policy});
  Apply(GroupFormed{.epoch = 1, .blocks_per_dp_group = 64});
  for (TenantId tenant = 0; tenant < 4; ++tenant) {
    Arrival arrival{.id = static_cast<RequestId>(tenant) + 1, .tenant = tenant, .max_tokens = 1};
    arrival.prompt.assign(tenant + 1, 5);
    Apply(arrival);
  }
  Apply(ResultOf(Plan()));
  EXPECT_DOUBLE_EQ(core_.service(0), 1 + 2 + 3);
  EXPECT_DOUBLE_EQ(core_.service(1), 2 + 3);
  EXPECT_DOUBLE_EQ(core_.service(2), 3);
  EXPECT_DOUBLE_EQ(core_.service(3), 4);
}

TEST_F(SchedulerTest, ThreeStepsMayBeInFlight) {
  Scheduler core({.block_size = 4, .max_num_seqs = 4, .max_num_batched_tokens = 32, .max_steps_in_flight = 3},
                 TenantsOf(1));
  core.Apply(0, GroupFormed{.epoch = 1, .blocks_per_dp_group = 8}, outputs_);
  core.Apply(0, Arrival{.id = 1, .prompt = {1, 2}, .max_tokens = 4}, outputs_);
  StepPlan plans[4];
  EXPECT_TRUE(core.Plan(0, plans[0], outputs_));
  EXPECT_TRUE(core.Plan(0, plans[1], outputs_));
  EXPECT_TRUE(core.Plan(0, plans[2], outputs_));
  EXPECT_FALSE(core.Plan(0, plans[3], outputs_));
  EXPECT_TRUE(plans[2].work[0].takes_sampled_token);
  for (int i = 0; i < 3; ++i) core.Apply(0, ResultOf(plans[i]), outputs_);
  EXPECT_TRUE(core.Plan(0, plans[3], outputs_));
  EXPECT_FALSE(plans[3].work[0].takes_sampled_token) << "known by now";
  core.Apply(0, ResultOf(plans[3]), outputs_);
  EXPECT_EQ(Take<Token>().size(), 4u);
}

using SchedulerDeathTest = SchedulerTest;

TEST_F(SchedulerDeathTest, StopsWhenTimeGoesBack) {
  now_ = 10;
  Apply(Tick{});
  now_ = 9;
  EXPECT_DEATH(Apply(Tick{}), "time does not go back");
}

TEST_F(SchedulerDeathTest, StopsAtLimitsThatContradictEachOther) {
  EXPECT_DEATH(Scheduler({.max_num_seqs = 10, .max_num_batched_tokens = 9}, {}), "at least max_num_seqs");
  EXPECT_DEATH(Scheduler({.block_size = 0}, {}), "block_size");
}

TEST_F(SchedulerDeathTest, StopsAtAPolicyThatTakesATenantAway) {
  EXPECT_DEATH(Apply(PolicyChanged{TenantsOf(2)}), "never remove");
}

TEST_F(SchedulerDeathTest, StopsAtAResultThatDoesNotFitItsPlan) {
  Apply(GroupFormed{.epoch = 1, .blocks_per_dp_group = 8});
  Add(1, 3, 2);
  StepCompleted completed = ResultOf(Plan());
  completed.sampled.clear();
  EXPECT_DEATH(Apply(completed), "one token for each work that samples");
}

}  // namespace
}  // namespace weir::scheduler
