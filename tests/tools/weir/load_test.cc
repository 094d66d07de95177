// What a load test sends and how it counts.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "tools/weir/load/load_plan.h"
#include "tools/weir/load/load_report.h"

namespace weir::tools {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Pair;

// ---- plans ----

TEST(LoadPlanTest, PoissonArrivalsHaveTheAskedRateAndItsSpread) {
  constexpr int kCount = 20'000;
  const auto plan = PlanPoisson(kCount, 50, 10, 5, 7);
  double sum = 0, sum_of_squares = 0;
  for (size_t i = 1; i < plan.size(); ++i) {
    const double gap_s = plan[i].at_s - plan[i - 1].at_s;
    ASSERT_GE(gap_s, 0);
    sum += gap_s;
    sum_of_squares += gap_s * gap_s;
  }
  const double mean = sum / (kCount - 1);
  const double deviation = std::sqrt(sum_of_squares / (kCount - 1) - mean * mean);
  EXPECT_NEAR(mean, 0.02, 0.0006);  // four standard errors
  EXPECT_NEAR(deviation / mean, 1.0, 0.05) << "an exponential distribution deviates by its mean";
}

TEST(LoadPlanTest, IsTheSameForTheSameSeedAndAnotherForAnother) {
  const auto times = [](uint64_t seed) {
    std::vector<double> at_s;
    for (const PlannedRequest& request : PlanPoisson(10, 1, 1, 1, seed)) at_s.push_back(request.at_s);
    return at_s;
  };
  EXPECT_EQ(times(1), times(1));
  EXPECT_NE(times(1), times(2));
}

TEST(LoadPlanTest, WithoutARateAllAreDueAtOnce) {
  for (const PlannedRequest& request : PlanPoisson(5, 0, 1, 1, 1)) EXPECT_EQ(request.at_s, 0);
}

TEST(LoadPlanTest, TraceLengthsAreBoundedByTheContext) {
  sim::RequestTrace trace;
  trace.requests.push_back({.arrival_us = 0, .num_prompt_tokens = 50, .num_output_tokens = 20});
  trace.requests.push_back({.arrival_us = 1'500'000, .num_prompt_tokens = 5000, .num_output_tokens = 20});
  trace.requests.push_back({.arrival_us = 2'000'000, .num_prompt_tokens = 90, .num_output_tokens = 500});
  const auto plan = PlanTrace(trace, 1, 100);
  EXPECT_EQ(plan[0].num_prompt_tokens + plan[0].num_output_tokens, 70);
  EXPECT_DOUBLE_EQ(plan[1].at_s, 1.5);
  EXPECT_EQ(plan[1].num_prompt_tokens, 99);
  EXPECT_EQ(plan[1].num_output_tokens, 1);
  EXPECT_EQ(plan[2].num_output_tokens, 10);
}

TEST(PromptIdsTest, AreInTheVocabularyAndAvoidWhatTheyShall) {
  PlannedRequest request;
  request.num_prompt_tokens = 5000;
  const auto ids = PromptIds(request, 1, 0, 16, {3, 4, 15});
  ASSERT_EQ(ids.size(), 5000U);
  EXPECT_EQ(std::set<uint32_t>(ids.begin(), ids.end()),
            (std::set<uint32_t>{0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}));
}

TEST(PromptIdsTest, DifferByRequestAndRepeatBySeed) {
  PlannedRequest request;
  request.num_prompt_tokens = 20;
  EXPECT_EQ(PromptIds(request, 1, 5, 1000, {}), PromptIds(request, 1, 5, 1000, {}));
  EXPECT_NE(PromptIds(request, 1, 5, 1000, {}), PromptIds(request, 1, 6, 1000, {}));
  EXPECT_NE(PromptIds(request, 1, 5, 1000, {}), PromptIds(request, 2, 5, 1000, {}));
}

TEST(PromptIdsTest, EqualHashIdsGiveEqualPrefixes) {
  PlannedRequest one, two;
  one.num_prompt_tokens = two.num_prompt_tokens = 1500;
  one.hash_ids = {7, 8, 9};
  two.hash_ids = {7, 8, 10};
  const auto a = PromptIds(one, 1, 0, 1000, {}), b = PromptIds(two, 1, 1, 1000, {});
  ASSERT_EQ(a.size(), 1500U);
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 1024, b.begin()));
  EXPECT_FALSE(std::equal(a.begin() + 1024, a.end(), b.begin() + 1024));
}

TEST(PromptIdsTest, PrefixesShrinkWithTheLengthsOfTheirTrace) {
  sim::RequestTrace trace;
  trace.requests.push_back({.num_prompt_tokens = 1500, .num_output_tokens = 1, .hash_ids = {7, 8, 9}});
  trace.requests.push_back({.num_prompt_tokens = 1500, .num_output_tokens = 1, .hash_ids = {7, 8, 10}});
  sim::Rescale(0.1, 1, trace);
  const auto plan = PlanTrace(trace, 0.1, 4096);
  const auto a = PromptIds(plan[0], 1, 0, 1000, {}), b = PromptIds(plan[1], 1, 1, 1000, {});
  ASSERT_EQ(a.size(), 150U);
  ASSERT_EQ(b.size(), 150U);
  const auto [differs, other] = std::mismatch(a.begin(), a.end(), b.begin());
  EXPECT_EQ(differs - a.begin(), 102) << "two blocks of 51.2 tokens are the same";
}

TEST(LoadPlanTest, CountsTheRequestsOfATraceThatDoNotFit) {
  sim::RequestTrace trace;
  trace.requests.push_back({.num_prompt_tokens = 90, .num_output_tokens = 10});
  trace.requests.push_back({.num_prompt_tokens = 91, .num_output_tokens = 10});
  EXPECT_EQ(CountShortened(trace, 100), 1);
}

// ---- reports ----

TEST(PercentilesTest, AreTheNearestRanks) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  const Percentiles p = PercentilesOf(values);
  EXPECT_EQ(p.p50, 50);
  EXPECT_EQ(p.p90, 90);
  EXPECT_EQ(p.p99, 99);
  EXPECT_EQ(p.max, 100);
  EXPECT_DOUBLE_EQ(p.mean, 50.5);
  EXPECT_EQ(PercentilesOf({4}).p50, 4);
  EXPECT_EQ(PercentilesOf({}).p99, 0);
}

RequestRecord Served(double due_s, double first_s, double last_s, int64_t num_tokens) {
  RequestRecord record;
  record.due_s = record.sent_s = due_s;
  record.first_token_s = first_s;
  record.last_token_s = record.ended_s = last_s;
  record.num_prompt_tokens = 10;
  record.num_output_tokens = num_tokens;
  return record;
}

RequestRecord Failed(const std::string& error, double ended_s) {
  RequestRecord record;
  record.error = error;
  record.ended_s = ended_s;
  return record;
}

TEST(LoadReportTest, CountsFromTheMomentWhenARequestWasDue) {
  RequestRecord late = Served(1.0, 1.6, 2.0, 5);
  late.sent_s = 1.5;
  const LoadReport report = Summarize({late}, {});
  EXPECT_DOUBLE_EQ(report.ttft_ms.p50, 600);
  EXPECT_DOUBLE_EQ(report.e2e_ms.p50, 1000);
  EXPECT_DOUBLE_EQ(report.tpot_ms.p50, 100);
  EXPECT_DOUBLE_EQ(report.max_late_ms, 500);
  EXPECT_THAT(Table(report, {}), HasSubstr("the client was up to 500 ms late"));
}

TEST(LoadReportTest, RatesAreOverTheWholeTimeAndServedRequestsOnly) {
  const LoadReport report = Summarize({Served(0, 1, 2, 10), Served(1, 2, 4, 30), Failed("full", 5)}, {});
  EXPECT_DOUBLE_EQ(report.wall_s, 5);
  EXPECT_DOUBLE_EQ(report.output_tokens_per_s(), 8);
  EXPECT_DOUBLE_EQ(report.prompt_tokens_per_s(), 4);
  EXPECT_DOUBLE_EQ(report.requests_per_s(), 0.4);
  EXPECT_EQ(report.num_failed, 1);
}

TEST(LoadReportTest, GoodputNeedsBothTimes) {
  const std::vector<RequestRecord> records = {Served(0, 0.1, 1.0, 10), Served(0, 0.6, 1.5, 10), Served(0, 0.1, 5.0, 10),
                                              Failed("x", 1)};
  const auto num_good = [&](const Slo& slo) { return Summarize(records, slo).num_good; };
  EXPECT_EQ(num_good({}), 3);
  EXPECT_EQ(num_good({.ttft_ms = 500}), 2);
  EXPECT_EQ(num_good({.tpot_ms = 200}), 2);
  EXPECT_EQ(num_good({.ttft_ms = 500, .tpot_ms = 200}), 1);
  EXPECT_THAT(Table(Summarize(records, {.ttft_ms = 500}), {.ttft_ms = 500}),
              HasSubstr("goodput 0.40 requests/s: 2 of 4"));
}

TEST(LoadReportTest, CountsErrorsByTheirText) {
  RequestRecord empty;  // served, and no token came
  const LoadReport report = Summarize({Failed("a", 1), Failed("b", 1), Failed("b", 1), empty}, {});
  EXPECT_THAT(report.errors, ElementsAre(Pair("b", 2), Pair("a", 1), Pair("no token came", 1)));
  EXPECT_EQ(report.num_failed, 4);
}

TEST(LoadReportTest, AnAnswerOfOneTokenHasNoTimePerFurtherToken) {
  const LoadReport report = Summarize({Served(0, 1, 1, 1), Served(0, 1, 2, 2)}, {});
  EXPECT_DOUBLE_EQ(report.tpot_ms.mean, 1000);
}

TEST(LoadReportTest, WhatAnInterruptionCancelledIsInNoNumberButItsOwn) {
  RequestRecord cancelled = Served(0, 9, 9, 3);
  cancelled.was_cancelled = true;
  const LoadReport report = Summarize({Served(0, 1, 2, 10), cancelled}, {});
  EXPECT_EQ(report.num_requests, 1);
  EXPECT_EQ(report.num_cancelled, 1);
  EXPECT_EQ(report.num_failed, 0);
  EXPECT_EQ(report.num_output_tokens, 10);
  EXPECT_DOUBLE_EQ(report.wall_s, 2);
  EXPECT_DOUBLE_EQ(report.ttft_ms.max, 1000);
}

TEST(LoadReportTest, NothingIsAReport) {
  const LoadReport report = Summarize({}, {});
  EXPECT_EQ(report.output_tokens_per_s(), 0);
  EXPECT_THAT(Table(report, {}), Not(HasSubstr("nan")));
}

}  // namespace
}  // namespace weir::tools
