// What the event loop keeps books with, alone.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "scheduler/service/inbox.h"
#include "scheduler/service/request_table.h"
#include "scheduler/service/result_gather.h"
#include "scheduler/service/step_pace.h"
#include "scheduler/service/submission.h"
#include "scheduler/service/tenant_table.h"
#include "weir/scheduler/v1/scheduler.pb.h"

namespace weir::scheduler {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(TenantTableTest, ParentsComeBeforeTheirChildren) {
  TenantTable table({}, 100);
  const auto desk = table.Find({"province", "city", "desk"}, {3, 2});
  EXPECT_TRUE(desk.has_changed);
  EXPECT_EQ(FindPolicyError(table.policy()), "");
  ASSERT_EQ(table.policy().tenants.size(), 4u);  // and its own
  EXPECT_EQ(table.policy().tenants[desk.id].parent, desk.id - 1);
  EXPECT_EQ(table.policy().tenants[desk.id - 1].weight, 2);
  EXPECT_EQ(table.policy().tenants[desk.id].weight, 1);
  EXPECT_EQ(table.name(desk.id), "province/city/desk");
  const auto again = table.Find({"province", "city", "desk"}, {3, 2});
  EXPECT_EQ(again.id, desk.id);
  EXPECT_FALSE(again.has_changed);
  EXPECT_TRUE(table.Find({"province", "city", "desk"}, {3, 4}).has_changed);
  EXPECT_EQ(table.policy().tenants[desk.id - 1].weight, 4);
}

TEST(TenantTableTest, TwoNamesAreNotOneNameWithASlash) {
  TenantTable table({}, 100);
  EXPECT_THAT(table.Find({"a/b"}, {}).error, HasSubstr("without '/'"));
  EXPECT_THAT(table.Find({""}, {}).error, HasSubstr("1 to 64 bytes"));
  EXPECT_THAT(table.Find({}, {}).error, HasSubstr("has 0 names"));
}

TEST(TenantTableTest, IsBounded) {
  TenantTable table({}, 4);
  EXPECT_EQ(table.Find({"a", "b"}, {}).error, "");
  EXPECT_EQ(table.Find({"a", "c"}, {}).error, "");
  const auto refused = table.Find({"a", "d"}, {});
  EXPECT_TRUE(refused.is_full);
  EXPECT_EQ(refused.id, -1);
  EXPECT_THAT(refused.error, HasSubstr("--max-tenants"));
  EXPECT_EQ(table.Find({"a", "b"}, {}).error, "");
}

TEST(RequestTableTest, NoiseNamesAreTheSameOnEveryReplica) {
  EXPECT_EQ(NoiseName(""), 0xcbf29ce484222325u);
  EXPECT_EQ(NoiseName("a"), 0xaf63dc4c8601ec8cu);  // published test vectors of FNV-1a
  EXPECT_EQ(NoiseName("foobar"), 0x85944171f73967e8u);
}

TEST(SubmissionTest, TheNoiseIsNamedByTheRequestUnlessTheGatewayNamesIt) {
  v1::Submit message;
  message.set_request_id("foobar");
  message.add_prompt_token_ids(1);
  message.set_max_tokens(1);
  const ReplicaView replica{.max_model_len = 10, .vocab_size = 5, .block_size = 4};
  Submission submission;
  ASSERT_EQ(ReadSubmission(message, replica, {}, 0, submission), "");
  EXPECT_EQ(submission.noise_name, NoiseName("foobar"));
  message.set_noise_name(0);
  ASSERT_EQ(ReadSubmission(message, replica, {}, 0, submission), "");
  EXPECT_EQ(submission.noise_name, 0u);
}

TEST(RequestTableTest, FindsAGatewaysRequestsAndNoOthers) {
  RequestTable table;
  table.Add({.id = 5, .gateway = 1, .number = 9});
  table.Add({.id = 4, .gateway = 1, .number = 10});
  table.Add({.id = 3, .gateway = 2, .number = 9});
  EXPECT_THAT(table.Of(1), ElementsAre(4, 5));
  EXPECT_EQ(table.Find(2, 9)->id, 3u);
  table.Remove(3);
  EXPECT_EQ(table.Find(2, 9), nullptr);
  EXPECT_EQ(table.Find(3), nullptr);
  EXPECT_TRUE(table.Of(2).empty());
}

TEST(StepPaceTest, JudgesAStepByStepsOfItsSize) {
  StepPace pace(2'000'000, 10'000'000);
  EXPECT_EQ(pace.DeadlineUs(1), 10'000'000);  // nothing is known
  for (int i = 0; i < 100; ++i) pace.Record(1, 1000);
  EXPECT_EQ(pace.DeadlineUs(1), 2'000'000);  // the floor
  EXPECT_GE(pace.DeadlineUs(1024), 5 * 1'024'000);
  for (int i = 0; i < 100; ++i) pace.Record(1024, 3'000'000);
  EXPECT_GE(pace.DeadlineUs(1024), 15'000'000);
  EXPECT_LE(pace.DeadlineUs(1024), 25'000'000);
  EXPECT_EQ(pace.DeadlineUs(1), 2'000'000);
}

TEST(StepPaceTest, OneSlowStepInAThousandChangesNothing) {
  StepPace pace(1, 1);
  for (int i = 0; i < 1000; ++i) pace.Record(1, i == 500 ? 60'000'000 : 1000);
  EXPECT_LE(pace.DeadlineUs(1), 10'000);
}

TEST(InboxTest, RefusesSubmissionsBeyondItsBoundAndNeverAnEnd) {
  Inbox inbox({.max_submissions = 2, .max_messages = 3});
  EXPECT_TRUE(inbox.Push(Submission{}));
  EXPECT_TRUE(inbox.Push(Submission{}));
  EXPECT_FALSE(inbox.Push(Submission{}));
  EXPECT_TRUE(inbox.Push(CancelOrder{}));
  EXPECT_FALSE(inbox.Push(CancelOrder{}));
  EXPECT_TRUE(inbox.Push(GatewayGone{}));
  EXPECT_TRUE(inbox.Push(RankEvent{.what = RankGone{}}));
  EXPECT_FALSE(inbox.Push(RankEvent{.what = RankResult{}}));
  EXPECT_TRUE(inbox.Push(DrainOrder{}));
  EXPECT_EQ(inbox.TakeAll(std::chrono::steady_clock::now()).size(), 6u);
  EXPECT_TRUE(inbox.Push(Submission{}));
}

StepPlan PlanOf(StepId step, std::vector<PlannedWork> work) {
  StepPlan plan{.epoch = 1, .step = step};
  plan.num_generated_rows = static_cast<int32_t>(work.size());
  plan.work = std::move(work);
  return plan;
}

RankResult ResultOf(StepId step, std::vector<SequenceOutcome> sequences, uint64_t plan_hash = 1) {
  return {.epoch = 1, .step = step, .plan_hash = plan_hash, .sequences = std::move(sequences)};
}

TEST(ResultGatherTest, TokensComeInPlanOrderFromTheFirstRankOfEachGroup) {
  ResultGather gather(4, 2);
  gather.Begin(100, PlanOf(1, {{.id = 1, .slot = 3, .samples = true},
                               {.id = 2, .slot = 1},
                               {.id = 3, .dp_group = 1, .slot = 3, .samples = true}}));
  CompletedStep step;
  EXPECT_EQ(gather.Take(2, ResultOf(1, {{.slot = 3, .dp_group = 1, .has_sampled = true, .token = 33}})), "");
  EXPECT_EQ(gather.Take(1, ResultOf(1, {{.slot = 77}})), "");  // not asked
  EXPECT_EQ(gather.Take(3, ResultOf(1, {})), "");
  EXPECT_FALSE(gather.PopCompleted(150, step));
  EXPECT_THAT(gather.Missing(), ElementsAre(0));
  EXPECT_EQ(gather.Take(0, ResultOf(1, {{.slot = 3, .has_sampled = true, .token = 11}, {.slot = 1}})), "");
  ASSERT_TRUE(gather.PopCompleted(180, step));
  EXPECT_EQ(step.took_us, 80);
  ASSERT_EQ(step.result.sampled.size(), 2u);
  EXPECT_EQ(step.result.sampled[0].token, 11);
  EXPECT_EQ(step.result.sampled[1].token, 33);
  EXPECT_TRUE(gather.empty());
}

TEST(ResultGatherTest, AStepThatOvertakesWaitsForTheOneBefore) {
  ResultGather gather(2, 1);
  gather.Begin(0, PlanOf(1, {{.id = 1, .slot = 0, .samples = true}}));
  gather.Begin(5, PlanOf(2, {{.id = 1, .slot = 0, .samples = true}}));
  const auto answer = [](int32_t token) {
    return std::vector<SequenceOutcome>{{.slot = 0, .has_sampled = true, .token = token}};
  };
  EXPECT_EQ(gather.Take(0, ResultOf(1, answer(4))), "");
  EXPECT_EQ(gather.Take(0, ResultOf(2, answer(5), 2)), "");
  CompletedStep step;
  EXPECT_FALSE(gather.PopCompleted(10, step));
  EXPECT_EQ(gather.Take(1, ResultOf(2, {}, 2)), "");
  EXPECT_FALSE(gather.PopCompleted(10, step));
  EXPECT_EQ(gather.Take(1, ResultOf(1, {})), "");
  ASSERT_TRUE(gather.PopCompleted(10, step));
  EXPECT_EQ(step.result.step, 1u);
  ASSERT_TRUE(gather.PopCompleted(12, step));
  EXPECT_EQ(step.result.step, 2u);
  EXPECT_EQ(step.took_us, 2);
}

TEST(ResultGatherTest, SaysWhatDoesNotFit) {
  ResultGather gather(2, 2);
  gather.Begin(0, PlanOf(1, {{.id = 1, .slot = 0, .samples = true}, {.id = 2, .slot = 1}}));
  const auto take = [&](std::vector<SequenceOutcome> sequences) {
    return gather.Take(0, ResultOf(1, std::move(sequences)));
  };
  EXPECT_THAT(take({}), HasSubstr("no answer for slot 0"));
  EXPECT_THAT(take({{.slot = 0}}), HasSubstr("neither a token nor a reason"));
  EXPECT_THAT(take({{.slot = 0, .has_sampled = true, .token = 1}, {.slot = 1, .has_sampled = true, .token = 1}}),
              HasSubstr("which samples none"));
  EXPECT_THAT(take({{.slot = 0, .has_sampled = true, .token = 1}, {.slot = 7}}), HasSubstr("out of plan order"));
  EXPECT_THAT(gather.Take(0, ResultOf(9, {})), HasSubstr("not to run"));
  EXPECT_EQ(take({{.slot = 0, .has_sampled = true, .is_finite = false}}), "");
  EXPECT_THAT(take({}), HasSubstr("second result"));
  EXPECT_THAT(gather.Take(1, ResultOf(1, {}, 2)), HasSubstr("another plan"));
}

}  // namespace
}  // namespace weir::scheduler
