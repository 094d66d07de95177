// The scheduler process against scripted ranks and gateways, over real gRPC.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "tests/scheduler/service/faults.h"
#include "tests/scheduler/service/test_cluster.h"

namespace weir::scheduler {
namespace {

using testing::HasSubstr;

std::vector<int32_t> Prompt(int seed, int n) {
  std::vector<int32_t> prompt(n);
  for (int i = 0; i < n; ++i) prompt[i] = (seed * 7919 + i * 104729 + 11) % kFakeVocabSize;
  return prompt;
}

// Deadlines so long that a busy machine is not taken for a hung rank.
ClusterOptions Patient(int tp = 1, int dp = 1) {
  ClusterOptions options{.tp = tp, .dp = dp};
  options.loop.group.step_deadline_us = 20'000'000;
  options.loop.group.unknown_step_deadline_us = 20'000'000;
  options.loop.group.connect_deadline_us = 10'000'000;
  options.loop.policy.max_worker_losses = 1000;
  return options;
}

// For tests that wait for the deadlines.
ClusterOptions Impatient(int tp = 1, int dp = 1) {
  ClusterOptions options = Patient(tp, dp);
  options.loop.group.step_deadline_us = 400'000;
  options.loop.group.unknown_step_deadline_us = 400'000;
  options.loop.group.connect_deadline_us = 100'000;
  return options;
}

void ExpectNoErrors(TestCluster& cluster) {
  for (int i = 0; i < cluster.num_ranks(); ++i) EXPECT_EQ(cluster.rank(i).error(), "");
}

void ExpectNothingHeld(TestCluster& cluster) {
  EXPECT_TRUE(WaitFor([&] { return cluster.view().num_running == 0 && cluster.view().num_waiting == 0; }));
  EXPECT_TRUE(WaitFor([&] { return cluster.metric("weir_kv_blocks{state=\"used\"}") == 0; }));
}

void ExpectAnswer(const TestAnswer& answer, const TestRequest& request) {
  EXPECT_EQ(answer.end->reason, "LENGTH") << answer.end->error;
  EXPECT_EQ(answer.tokens, FakeOutput(request.prompt, request.max_tokens));
  EXPECT_EQ(answer.end->num_output_tokens, request.max_tokens);
}

// ---- serving ----

TEST(ServiceTest, StreamsToEveryRequestTheTokensTheModelGivesIt) {
  TestCluster cluster(Patient(2, 2));
  ASSERT_TRUE(cluster.WaitUntilReady());
  const auto gateway = cluster.Connect();
  std::vector<TestRequest> requests;
  std::vector<uint64_t> numbers;
  for (int i = 0; i < 40; ++i) {
    requests.push_back({.prompt = Prompt(i, 3 + i), .max_tokens = 1 + i, .name = std::to_string(i)});
    numbers.push_back(gateway->Submit(requests.back()));
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    const TestAnswer answer = gateway->WaitForEnd(numbers[i]);
    ExpectAnswer(answer, requests[i]);
    EXPECT_TRUE(answer.is_admitted);
    EXPECT_EQ(answer.first_index, 0);
  }
  ExpectNothingHeld(cluster);
  ExpectNoErrors(cluster);
}

TEST(ServiceTest, ThePlanAfterIsAtTheRankBeforeAStepEnds) {
  TestCluster cluster(Patient());
  ASSERT_TRUE(cluster.WaitUntilReady());
  cluster.rank(0).SetStepTime(20'000);
  const auto gateway = cluster.Connect();
  const TestRequest request{.prompt = Prompt(1, 5), .max_tokens = 30};
  ExpectAnswer(gateway->WaitForEnd(gateway->Submit(request)), request);
  EXPECT_GE(cluster.rank(0).num_steps_planned_ahead(), 25);
  ExpectNoErrors(cluster);
}

TEST(ServiceTest, AStopTokenEndsTheOutput) {
  TestCluster cluster(Patient());
  ASSERT_TRUE(cluster.WaitUntilReady());
  const auto gateway = cluster.Connect();
  TestRequest request{.prompt = Prompt(2, 9), .max_tokens = 20};
  request.stop = {FakeOutput(request.prompt, 5)[4]};
  const TestAnswer answer = gateway->WaitForEnd(gateway->Submit(request));
  EXPECT_EQ(answer.end->reason, "STOP");
  EXPECT_EQ(answer.tokens, FakeOutput(request.prompt, 5));
}

TEST(ServiceTest, ContinuesWhatAnotherReplicaBegan) {
  TestCluster cluster(Patient());
  ASSERT_TRUE(cluster.WaitUntilReady());
  const auto gateway = cluster.Connect();
  TestRequest request{.prompt = Prompt(3, 9), .max_tokens = 12};
  const std::vector<int32_t> whole = FakeOutput(request.prompt, 12);
  request.resumed.assign(whole.begin(), whole.begin() + 5);
  const TestAnswer answer = gateway->WaitForEnd(gateway->Submit(request));
  EXPECT_EQ(answer.first_index, 5);
  EXPECT_EQ(answer.tokens, std::vector<int32_t>(whole.begin() + 5, whole.end()));
  ExpectNoErrors(cluster);
}

TEST(ServiceTest, SendsLogprobsOnlyToThoseWhoAsked) {
  TestCluster cluster(Patient());
  ASSERT_TRUE(cluster.WaitUntilReady());
  const auto gateway = cluster.Connect();
  const TestAnswer with = gateway->WaitForEnd(gateway->Submit({.wants_logprob = true}));
  const TestAnswer without = gateway->WaitForEnd(gateway->Submit({}));
  EXPECT_EQ(with.logprobs, std::vector<float>(8, -0.5f));
  EXPECT_TRUE(without.logprobs.empty());
}

TEST(ServiceTest, ATenantFindsItsCachedPromptAndNobodyElseDoes) {
  TestCluster cluster(Patient());
  ASSERT_TRUE(cluster.WaitUntilReady());
  const auto gateway = cluster.Connect();
  const auto cached = [&](const std::string& key) {
    return gateway->WaitForEnd(gateway->Submit({.prompt = Prompt(4, 20), .cache_key = key})).end->num_cached_tokens;
  };
  const std::string one(16, 'a'), other(16, 'b');
  EXPECT_EQ(cached(one), 0);
  EXPECT_EQ(cached(one), 16);  // the last block is computed for its logits
  EXPECT_EQ(cached(other), 0);
  EXPECT_EQ(cached(""), 0);
  EXPECT_EQ(cached(""), 0);
  ExpectNoErrors(cluster);
}

TEST(ServiceTest, IsReadyOnlyWhenATokenHasBeenProduced) {
  ClusterOptions options = Patient();
  options.rank.sends_results = false;
  TestCluster cluster(std::move(options));
  ASSERT_TRUE(WaitFor([&] { return cluster.rank(0).num_steps() > 0; }));
  EXPECT_FALSE(cluster.view().is_ready);
  EXPECT_THAT(cluster.view().why_not_ready, HasSubstr("token"));
}

// ---- gateways ----

TEST(ServiceTest, ACancelledRequestEndsAndFreesItsBlocks) {
  TestCluster cluster(Patient());
  ASSERT_TRUE(cluster.WaitUntilReady());
  cluster.rank(0).SetStepTime(2000);
  const auto gateway = cluster.Connect();
  const uint64_t cancelled = gateway->Submit({.max_tokens = 150});
  const uint64_t stopped = gateway->Submit({.max_tokens = 150});
  ASSERT_TRUE(WaitFor([&] { return gateway->Answer(cancelled).tokens.size() > 3; }));
  gateway->Cancel(cancelled);
  gateway->Cancel(stopped, true);
  EXPECT_EQ(gateway->WaitForEnd(cancelled).end->reason, "CANCELLED");
  EXPECT_EQ(gateway->WaitForEnd(stopped).end->reason, "STOP");
  ExpectNothingHeld(cluster);
}

TEST(ServiceTest, AVanishedGatewayTakesItsRequestsWithItAndNoOthers) {
  TestCluster cluster(Patient());
  ASSERT_TRUE(cluster.WaitUntilReady());
  cluster.rank(0).SetStepTime(2000);
  const auto stays = cluster.Connect();
  auto vanishes = cluster.Connect();
  for (int i = 0; i < 5; ++i) vanishes->Submit({.prompt = Prompt(i, 10), .max_tokens = 180});
  const TestRequest request{.prompt = Prompt(9, 10), .max_tokens = 60};
  const uint64_t number = stays->Submit(request);
  ASSERT_TRUE(WaitFor([&] { return vanishes->Answer(1).tokens.size() > 2; }));
  vanishes = nullptr;
  ExpectAnswer(stays->WaitForEnd(number), request);
  EXPECT_TRUE(WaitFor([&] { return cluster.metric("weir_scheduler_gateways") == 1; }));
  ExpectNothingHeld(cluster);
  ExpectNoErrors(cluster);
}

TEST(ServiceTest, AGatewayThatDoesNotReadIsCutOff) {
  ClusterOptions options = Patient();
  options.max_output_bytes = 20'000;
  options.rank.max_model_len = 100'000;
  options.rank.num_blocks = 50'000;
  TestCluster cluster(std::move(options));
  ASSERT_TRUE(cluster.WaitUntilReady());
  const auto slow = cluster.Connect();
  slow->StopReading();
  // More than the buffers of the connection hold.
  const std::string name(200, 'x');
  for (int i = 0; i < 8; ++i) slow->Submit({.prompt = Prompt(i, 5), .max_tokens = 90'000, .name = name});
  EXPECT_TRUE(WaitFor([&] { return cluster.metric("weir_scheduler_gateways") == 0; }, std::chrono::seconds(60)));
  ExpectNothingHeld(cluster);
}

TEST(ServiceTest, SaysOfABadFieldWhatItIsAndWhatIsAllowed) {
  TestCluster cluster(Patient());
  ASSERT_TRUE(cluster.WaitUntilReady());
  const auto gateway = cluster.Connect();
  const auto refusal = [&](const TestRequest& request) {
    const TestEnd end = *gateway->WaitForEnd(gateway->Submit(request)).end;
    return end.reason + ": " + end.error;
  };
  EXPECT_THAT(refusal({.prompt = {}}), HasSubstr("REFUSED INVALID: prompt_token_ids: is empty"));
  EXPECT_THAT(refusal({.prompt = {4, 50000}}), HasSubstr("prompt_token_ids[1]: is 50000; token ids are below 50000"));
  EXPECT_THAT(refusal({.stop = {-1}}), HasSubstr("stop_token_ids[0]: is 4294967295"));
  EXPECT_THAT(refusal({.max_tokens = 0}), HasSubstr("max_tokens: is 0"));
  EXPECT_THAT(refusal({.resumed = {1, 2}, .max_tokens = 2}), HasSubstr("more than the 2 resumed tokens"));
  EXPECT_THAT(refusal({.tenant = {}}), HasSubstr("tenant_path"));
  EXPECT_THAT(refusal({.name = ""}), HasSubstr("request_id"));
  EXPECT_THAT(refusal({.cache_key = "short"}), HasSubstr("cache_namespace_key: is 5 bytes long"));
  EXPECT_THAT(refusal({.constraint = "json"}), HasSubstr("constraint"));
  const TestEnd too_long = *gateway->WaitForEnd(gateway->Submit({.prompt = Prompt(1, 150), .max_tokens = 51})).end;
  EXPECT_EQ(too_long.reason, "REFUSED TOO_LONG");
  EXPECT_EQ(too_long.needed, 201);
  EXPECT_EQ(too_long.limit, 200);
  // Others are not harmed.
  const TestRequest good{};
  ExpectAnswer(gateway->WaitForEnd(gateway->Submit(good)), good);
}

TEST(ServiceTest, RefusesATenantBelowOneThatSendsRequests) {
  TestCluster cluster(Patient());
  ASSERT_TRUE(cluster.WaitUntilReady());
  const auto gateway = cluster.Connect();
  gateway->WaitForEnd(gateway->Submit({.tenant = {"a", "b"}}));
  EXPECT_THAT(gateway->WaitForEnd(gateway->Submit({.tenant = {"a", "b", "c"}})).end->error, HasSubstr("\"a/b\""));
  EXPECT_THAT(gateway->WaitForEnd(gateway->Submit({.tenant = {"a"}})).end->error, HasSubstr("leaves"));
}

TEST(ServiceTest, RefusesWhileNoGroupHasEverStood) {
  ClusterOptions options = Patient(2);
  options.adapt = [](FakeRankOptions& rank) { rank.manifest_hash = 7 + static_cast<uint64_t>(rank.rank); };
  TestCluster cluster(std::move(options));
  const auto gateway = cluster.Connect();
  const TestAnswer answer = gateway->WaitForEnd(gateway->Submit({}));
  EXPECT_EQ(answer.end->reason, "REFUSED NO_WORKERS");
  EXPECT_GT(answer.end->retry_after_ms, 0u);
  EXPECT_TRUE(
      WaitFor([&] { return cluster.view().why_not_ready.find("manifest_hash is 8 and not 7") != std::string::npos; }));
}

TEST(ServiceTest, ADeadlineEndsWhatRuns) {
  TestCluster cluster(Patient());
  ASSERT_TRUE(cluster.WaitUntilReady());
  cluster.rank(0).SetStepTime(20'000);
  const auto gateway = cluster.Connect();
  const TestAnswer answer = gateway->WaitForEnd(gateway->Submit({.max_tokens = 150, .deadline_ms = 300}));
  EXPECT_EQ(answer.end->reason, "DEADLINE");
  ExpectNothingHeld(cluster);
}

TEST(ServiceTest, LearnsWhatStepsCostAndRefusesWhatCannotBeInTime) {
  TestCluster cluster(Patient());
  ASSERT_TRUE(cluster.WaitUntilReady());
  const std::string fixed = "weir_scheduler_step_cost_seconds{kind=\"fixed\"}";
  EXPECT_LT(cluster.metric(fixed), 0.005);
  cluster.rank(0).SetStepTime(10'000);
  const auto gateway = cluster.Connect();
  gateway->WaitForEnd(gateway->Submit({.max_tokens = 190}));
  EXPECT_GE(cluster.metric(fixed), 0.007);
  const TestAnswer late = gateway->WaitForEnd(gateway->Submit({.prompt = Prompt(1, 150), .deadline_ms = 20}));
  EXPECT_EQ(late.end->reason, "REFUSED DEADLINE");
  EXPECT_GE(late.end->needed, 35) << "ms: five steps";
  const TestRequest patient{.prompt = Prompt(1, 150), .deadline_ms = 15'000};
  ExpectAnswer(gateway->WaitForEnd(gateway->Submit(patient)), patient);
}

// ---- faults of ranks ----

class FaultTest : public testing::TestWithParam<Fault> {};

TEST_P(FaultTest, CostsAPauseAndNotOneToken) {
  TestCluster cluster(GetParam().is_slow ? Impatient(2, 2) : Patient(2, 2));
  ASSERT_TRUE(cluster.WaitUntilReady());
  for (int i = 0; i < cluster.num_ranks(); ++i) cluster.rank(i).SetStepTime(3000);
  const auto gateway = cluster.Connect();
  std::vector<TestRequest> requests;
  for (int i = 0; i < 6; ++i) {
    requests.push_back({.prompt = Prompt(i, 20 + i), .max_tokens = 60, .cache_key = std::string(16, 'k')});
    gateway->Submit(requests.back());
  }
  ASSERT_TRUE(WaitFor([&] { return gateway->Answer(1).tokens.size() > 10; }));
  GetParam().strike(cluster);
  for (size_t i = 0; i < requests.size(); ++i) ExpectAnswer(gateway->WaitForEnd(i + 1), requests[i]);
  EXPECT_GE(cluster.metric("weir_worker_group_losses_total"), 1);
  EXPECT_GE(cluster.rank(0).num_epochs(), 1);
  EXPECT_TRUE(cluster.WaitUntilReady());
  ExpectNothingHeld(cluster);
  ExpectNoErrors(cluster);
}

INSTANTIATE_TEST_SUITE_P(All, FaultTest, testing::ValuesIn(Faults()), [](const auto& test) { return test.param.name; });

TEST(ServiceTest, ARequestInFlightAtTwoLossesIsQuarantined) {
  ClusterOptions options = Patient();
  options.loop.policy.max_worker_losses = 2;
  TestCluster cluster(std::move(options));
  ASSERT_TRUE(cluster.WaitUntilReady());
  cluster.rank(0).SetStepTime(5000);
  const auto gateway = cluster.Connect();
  const uint64_t number = gateway->Submit({.max_tokens = 150});
  for (int i = 0; i < 2; ++i) {
    const size_t before = gateway->Answer(number).tokens.size();
    ASSERT_TRUE(WaitFor([&] { return gateway->Answer(number).tokens.size() > before + 2; }));
    cluster.rank(0).Kill();
    cluster.rank(0).Start();
    cluster.rank(0).SetStepTime(5000);
  }
  const TestAnswer answer = gateway->WaitForEnd(number);
  EXPECT_EQ(answer.end->reason, "QUARANTINED");
  EXPECT_EQ(answer.end->num_worker_losses, 2);
}

TEST(ServiceTest, AResultOfAnOldEpochChangesNothing) {
  TestCluster cluster(Patient());
  ASSERT_TRUE(cluster.WaitUntilReady());
  const uint64_t epoch = cluster.rank(0).epoch();
  SayOldResult(cluster.rank(0), epoch - 1);
  const auto gateway = cluster.Connect();
  const TestRequest request{.max_tokens = 20};
  ExpectAnswer(gateway->WaitForEnd(gateway->Submit(request)), request);
  EXPECT_EQ(cluster.rank(0).epoch(), epoch);
}

TEST(ServiceTest, WhatARankCannotRunEndsAloneWithItsReason) {
  TestCluster cluster(Patient());
  ASSERT_TRUE(cluster.WaitUntilReady());
  cluster.rank(0).SetStepTime(2000);
  const auto gateway = cluster.Connect();
  const TestRequest good{.prompt = Prompt(1, 6), .max_tokens = 40};
  const uint64_t goes_on = gateway->Submit(good);
  ASSERT_TRUE(WaitFor([&] { return gateway->Answer(goes_on).tokens.size() > 2; }));
  FailTheSecondSequence(cluster.rank(0));
  const uint64_t fails = gateway->Submit({.prompt = Prompt(2, 6), .max_tokens = 40});
  const TestAnswer failed = gateway->WaitForEnd(fails);
  EXPECT_EQ(failed.end->reason, "FAILED");
  EXPECT_EQ(failed.end->error, "scripted");
  ExpectAnswer(gateway->WaitForEnd(goes_on), good);
  EXPECT_EQ(cluster.metric("weir_worker_group_losses_total"), 0);
}

TEST(ServiceTest, RanksInTheWrongOrderAreNamed) {
  ClusterOptions options = Patient(2);
  options.adapt = [](FakeRankOptions& rank) { rank.rank = 1 - rank.rank; };
  TestCluster cluster(std::move(options));
  EXPECT_TRUE(WaitFor([&] {
    return cluster.view().why_not_ready.find("list the addresses in rank order") != std::string::npos;
  })) << cluster.view().why_not_ready;
}

TEST(ServiceTest, ARankOfAnotherBuildIsReported) {
  ClusterOptions options = Patient();
  options.build = "newer";
  TestCluster cluster(std::move(options));
  EXPECT_TRUE(WaitFor([&] { return cluster.view().why_not_ready.find("another build") != std::string::npos; }))
      << cluster.view().why_not_ready;
}

TEST(ServiceTest, RanksMayComeLateAndInAnyOrder) {
  TestCluster cluster(Patient(2));
  cluster.rank(0).Kill();
  cluster.rank(1).Kill();
  cluster.rank(1).Start();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_FALSE(cluster.view().is_ready);
  cluster.rank(0).Start();
  EXPECT_TRUE(cluster.WaitUntilReady());
}

TEST(ServiceTest, AnIdleGroupThatHangsIsFoundByItsCanary) {
  ClusterOptions options = Impatient();
  options.loop.canary_interval_us = 100'000;
  TestCluster cluster(std::move(options));
  ASSERT_TRUE(cluster.WaitUntilReady());
  cluster.rank(0).Hang(true);
  EXPECT_TRUE(WaitFor([&] { return !cluster.view().is_ready; }));
  cluster.rank(0).Hang(false);
  EXPECT_TRUE(cluster.WaitUntilReady());
}

// ---- the process ----

TEST(ServiceTest, DrainingRefusesTheNewAndFinishesTheOld) {
  TestCluster cluster(Patient());
  ASSERT_TRUE(cluster.WaitUntilReady());
  cluster.rank(0).SetStepTime(5000);
  const auto gateway = cluster.Connect();
  const TestRequest old{.max_tokens = 60};
  const uint64_t number = gateway->Submit(old);
  ASSERT_TRUE(WaitFor([&] { return gateway->Answer(number).tokens.size() > 2; }));
  cluster.BeginDrain(20'000);
  ASSERT_TRUE(WaitFor([&] { return cluster.view().is_draining; }));
  EXPECT_FALSE(cluster.view().is_ready);
  EXPECT_EQ(gateway->WaitForEnd(gateway->Submit({})).end->reason, "REFUSED DRAINING");
  EXPECT_TRUE(cluster.DrainScheduler(20'000));
  ExpectAnswer(gateway->WaitForEnd(number), old);
  EXPECT_TRUE(WaitFor([&] { return gateway->is_over(); }));
  EXPECT_THAT(gateway->status(), HasSubstr("drained"));
}

TEST(ServiceTest, WhatDoesNotEndInTimeIsHandedBack) {
  TestCluster cluster(Patient());
  ASSERT_TRUE(cluster.WaitUntilReady());
  cluster.rank(0).SetStepTime(50'000);
  const auto gateway = cluster.Connect();
  const uint64_t number = gateway->Submit({.max_tokens = 150});
  ASSERT_TRUE(WaitFor([&] { return !gateway->Answer(number).tokens.empty(); }));
  EXPECT_FALSE(cluster.DrainScheduler(100));
  EXPECT_TRUE(WaitFor([&] { return gateway->is_over(); }));
  EXPECT_THAT(gateway->status(), HasSubstr("14 "));  // UNAVAILABLE
}

TEST(ServiceTest, ASchedulerThatStartsAnewTakesTheRanksOver) {
  TestCluster cluster(Patient(2));
  ASSERT_TRUE(cluster.WaitUntilReady());
  const auto before = cluster.Connect();
  before->Submit({.max_tokens = 190});
  cluster.StartScheduler();
  ASSERT_TRUE(cluster.WaitUntilReady());
  const auto gateway = cluster.Connect();
  const TestRequest request{.max_tokens = 20};
  ExpectAnswer(gateway->WaitForEnd(gateway->Submit(request)), request);
  ExpectNoErrors(cluster);
}

TEST(ServiceTest, MetricsSayWhatEachRequestWaitsFor) {
  ClusterOptions options = Patient(2);
  options.rank.num_blocks = 1000;
  TestCluster cluster(std::move(options));
  ASSERT_TRUE(cluster.WaitUntilReady());
  const auto gateway = cluster.Connect();
  const auto waiting = [&](const std::string& reason) {
    return cluster.metric("weir_scheduler_waiting{reason=\"" + reason + "\"}");
  };
  for (int rank = 0; rank < 2; ++rank) cluster.rank(rank).SetStepTime(20'000);
  for (int i = 0; i < 12; ++i) gateway->Submit({.prompt = {i + 1}, .max_tokens = 190});
  EXPECT_TRUE(WaitFor([&] { return waiting("slots") == 1 && waiting("share") == 3; })) << cluster.metrics();
  EXPECT_EQ(cluster.metric("weir_scheduler_requests{state=\"waiting\"}"), 4);
  cluster.rank(1).Kill();
  EXPECT_TRUE(WaitFor([&] { return waiting("recovering") == 8 && waiting("workers") == 4; })) << cluster.metrics();
  EXPECT_EQ(waiting("share") + waiting("slots") + waiting("blocks") + waiting("preempted"), 0);
}

TEST(ServiceTest, MetricsNameWhatHappened) {
  TestCluster cluster(Patient(2));
  ASSERT_TRUE(cluster.WaitUntilReady());
  const auto gateway = cluster.Connect();
  gateway->WaitForEnd(gateway->Submit({.prompt = Prompt(1, 10), .max_tokens = 5, .tenant = {"north", "bus"}}));
  gateway->WaitForEnd(gateway->Submit({.prompt = {}}));
  ASSERT_TRUE(
      WaitFor([&] { return cluster.metric("weir_scheduler_refused_requests_total{reason=\"invalid\"}") == 1; }));
  EXPECT_EQ(cluster.metric("weir_scheduler_tokens_total{kind=\"prompt\",tenant=\"north/bus\"}"), 10);
  EXPECT_EQ(cluster.metric("weir_scheduler_tokens_total{kind=\"generated\",tenant=\"north/bus\"}"), 5);
  EXPECT_EQ(cluster.metric("weir_worker_up{rank=\"1\"}"), 1);
  EXPECT_GT(cluster.metric("weir_scheduler_step_seconds_count"), 4);
  EXPECT_EQ(cluster.metric("weir_scheduler_ready"), 1);
  EXPECT_EQ(cluster.metric("weir_build_info{version=\"test\"}"), 1);
}

}  // namespace
}  // namespace weir::scheduler
