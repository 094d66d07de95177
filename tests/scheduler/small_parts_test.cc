#include <gtest/gtest.h>

#include <numeric>

#include "scheduler/core/buffer_pool.h"
#include "scheduler/core/deadlines.h"
#include "scheduler/core/forecast.h"
#include "scheduler/core/policy.h"
#include "scheduler/core/sequence.h"
#include "scheduler/core/steps_in_flight.h"
#include "scheduler/core/wait_clock.h"

namespace weir::scheduler {
namespace {

TEST(BufferPool, GrowsAndKeepsWhatIsIn) {
  BufferPool pool;
  IntBuffer buffer;
  for (int32_t i = 0; i < 1000; ++i) pool.Append(buffer, i);
  std::vector<int32_t> more(500);
  std::iota(more.begin(), more.end(), 1000);
  pool.Append(buffer, more);
  ASSERT_EQ(buffer.size(), 1500);
  for (int32_t i = 0; i < 1500; ++i) ASSERT_EQ(buffer[i], i);
}

TEST(BufferPool, TheMemoryOfOneServesTheNext) {
  BufferPool pool;
  IntBuffer first, second;
  pool.Reserve(first, 100);
  pool.Append(first, 1);
  const int32_t* memory = first.view().data();
  pool.Release(first);
  EXPECT_TRUE(first.empty());
  pool.Reserve(second, 100);
  pool.Append(second, 2);
  EXPECT_EQ(second.view().data(), memory);
}

TEST(Sequence, WhatEveryStepTouchesLiesInTwoCacheLines) {
  const Sequence sequence;
  const auto* begin = reinterpret_cast<const char*>(&sequence);
  EXPECT_LE(reinterpret_cast<const char*>(&sequence.stop_tokens) - begin, 128);
}

TEST(Deadlines, GiveTheEarliest) {
  Deadlines deadlines;
  EXPECT_EQ(deadlines.earliest(), kNever);
  deadlines.Add(3, 300);
  deadlines.Add(1, 100);
  deadlines.Add(2, kNever);
  deadlines.Add(4, 100);
  EXPECT_EQ(deadlines.earliest(), 100);
  EXPECT_EQ(deadlines.first(), 1) << "equal: the smaller index";
  deadlines.Remove(1);
  deadlines.Remove(2);
  EXPECT_EQ(deadlines.first(), 4);
  deadlines.Remove(4);
  EXPECT_EQ(deadlines.earliest(), 300);
  deadlines.Remove(3);
  EXPECT_EQ(deadlines.earliest(), kNever);
}

TEST(Forecast, CountsStepsRowsAndContext) {
  const StepCost cost = {.fixed_us = 1000, .us_per_prompt_token = 10, .us_per_context_token = 0.5};
  EXPECT_EQ(PromptTimeUs(cost, 0, 0, 100), 0);
  EXPECT_EQ(PromptTimeUs(cost, 4, 0, 100), 1000 + 40 + 3);  // contexts 0 + 1 + 2 + 3
  EXPECT_EQ(PromptTimeUs(cost, 2, 10, 100), 1000 + 20 + 10);
  EXPECT_EQ(PromptTimeUs(cost, 4, 0, 3), 2000 + 40 + 3);
}

TEST(Forecast, WhatIsAheadMayBeSpreadOverAllGroups) {
  const StepCost cost = {.fixed_us = 1000, .us_per_prompt_token = 10, .us_per_context_token = 0};
  EXPECT_EQ(FirstTokenTimeUs(cost, 4, 0, 200, 100, 1), 2000 + 2000 + 1040);
  EXPECT_EQ(FirstTokenTimeUs(cost, 4, 0, 200, 100, 2), 1000 + 1000 + 1040);
}

TEST(Forecast, DoesNotOverflow) {
  const StepCost cost = {.fixed_us = 1e15};
  EXPECT_GT(PromptTimeUs(cost, int64_t{1} << 40, int64_t{1} << 40, 1), 0);
}

TEST(WaitClock, ThePartsAddUpToTheWhole) {
  WorkerDowntime downtime;
  downtime.GroupStands(0);
  WaitClock clock;
  clock.Start(100, downtime);
  clock.SwitchTo(WaitCause::kBlocks, 110, downtime);
  clock.SwitchTo(WaitCause::kPrefill, 130, downtime);
  clock.SwitchTo(WaitCause::kPreempted, 137, downtime);
  clock.SwitchTo(WaitCause::kDecode, 150, downtime);
  const WaitSplit split = clock.Stop(200, downtime);
  EXPECT_EQ(split.queued_for_share_us, 10);
  EXPECT_EQ(split.queued_for_blocks_us, 20);
  EXPECT_EQ(split.prefill_us, 7);
  EXPECT_EQ(split.preempted_us, 13);
  EXPECT_EQ(split.decode_us, 50);
}

TEST(WaitClock, QueuedTimeWithoutWorkersHasACauseOfItsOwn) {
  WorkerDowntime downtime;  // no group yet
  WaitClock clock;
  clock.Start(-50, downtime);
  downtime.GroupStands(0);
  downtime.GroupGone(30);
  downtime.GroupStands(70);
  const WaitSplit split = clock.Stop(100, downtime);
  EXPECT_EQ(split.queued_for_workers_us, 50 + 40);
  EXPECT_EQ(split.queued_for_share_us, 60);
}

TEST(WaitClock, ARecoveringRequestRecoversWhileNoGroupStands) {
  WorkerDowntime downtime;
  downtime.GroupStands(0);
  WaitClock clock;
  clock.Start(0, downtime);
  clock.SwitchTo(WaitCause::kRecovering, 10, downtime);
  downtime.GroupGone(10);
  downtime.GroupStands(60);
  const WaitSplit split = clock.Stop(80, downtime);
  EXPECT_EQ(split.queued_for_workers_us, 0);
  EXPECT_EQ(split.recovering_us, 70);
}

TEST(StepsInFlight, AreFoundUntilTheyAreCompleted) {
  StepsInFlight steps(2);
  steps.PushBack(7);
  steps.PushBack(8);
  EXPECT_TRUE(steps.full());
  EXPECT_EQ(steps.Find(9), nullptr);
  steps.Find(8)->is_completed = true;
  EXPECT_EQ(steps.Find(8), nullptr);
  EXPECT_EQ(steps.at(0).step, 7u);
  steps.PopFront();
  EXPECT_EQ(steps.at(0).step, 8u);
}

TEST(Policy, ErrorsSayWhatIsWrong) {
  Policy policy;
  policy.tenants = {{}, {.parent = 0}};
  EXPECT_EQ(FindPolicyError(policy), "");
  policy.tenants[1].weight = 0;
  EXPECT_EQ(FindPolicyError(policy), "tenant 1: weight must be greater than 0");
  policy.tenants[1] = {.parent = 1};
  EXPECT_EQ(FindPolicyError(policy), "tenant 1: parent must be -1 or an earlier tenant");
  policy.tenants[1] = {};
  policy.min_class_share = {0, 0.7, 0.7};
  EXPECT_EQ(FindPolicyError(policy), "min_class_share must not add up to more than 1");
}

}  // namespace
}  // namespace weir::scheduler
