#include "tools/sim/replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

// What a replay must show whatever the scheduler's exact choices: every request accounted for, equal inputs equal
// numbers, and the effects for which the tool is used.

namespace weir::sim {
namespace {

using ::testing::HasSubstr;

const std::string kSamples = std::string(WEIR_SOURCE_DIR) + "/tests/sim/testdata/";

RequestTrace Sample(const std::string& name, const PolicyFile& policy, double scale = 1) {
  auto trace = ReadTrace(kSamples + name);
  EXPECT_TRUE(trace.ok()) << trace.status();
  AssignTenants(policy.leaves(), 1, *trace);
  Rescale(scale, 1, *trace);
  return *std::move(trace);
}

ReplayOptions WithoutWarmup(double scale = 1) {
  ReplayOptions options;
  options.warmup_s = 0;
  options.scale = scale;
  return options;
}

TEST(ReplayTest, EveryRequestIsAnsweredAndSharesAddUp) {
  const PolicyFile policy = DefaultPolicyFile();
  const ReplayResult result = Replay(policy, Sample("azure_conversation_sample.csv", policy), WithoutWarmup());
  EXPECT_EQ(result.all.num_requests, 200);
  EXPECT_EQ(result.all.num_finished, 200);
  double share = 0;
  int64_t num_finished = 0;
  for (const TenantResult& tenant : result.tenants) {
    share += tenant.share;
    num_finished += tenant.num_finished;
  }
  EXPECT_NEAR(share, 1, 1e-9);
  EXPECT_EQ(num_finished, 200);
  EXPECT_LE(result.all.ttft_ms.p50, result.all.ttft_ms.p90);
  EXPECT_LE(result.all.ttft_ms.p90, result.all.ttft_ms.p99);
  EXPECT_GT(result.all.ttft_ms.p50, policy.policy.step_cost.fixed_us / 1000);
  EXPECT_EQ(result.all.hit_rate, 0);
  EXPECT_LE(result.max_gap_over_u, 2);
}

TEST(ReplayTest, TheSameInputsGiveTheSameNumbers) {
  const PolicyFile policy = DefaultPolicyFile();
  const RequestTrace trace = Sample("mooncake_conversation_sample.jsonl", policy, 0.1);
  const std::string once = ResultJson(Replay(policy, trace, WithoutWarmup(0.1)), nullptr);
  EXPECT_EQ(once, ResultJson(Replay(policy, trace, WithoutWarmup(0.1)), nullptr));
}

TEST(ReplayTest, SharedPrefixesAreFoundInTheCacheAndASmallCacheFindsLess) {
  PolicyFile policy = DefaultPolicyFile();
  policy.limits.block_size = 16;
  const RequestTrace trace = Sample("mooncake_conversation_sample.jsonl", policy, 0.125);
  policy.blocks_per_dp_group = 20000;
  const ReplayResult roomy = Replay(policy, trace, WithoutWarmup(0.125));
  EXPECT_GT(roomy.all.hit_rate, 0.03);
  policy.blocks_per_dp_group = 1000;
  const ReplayResult tight = Replay(policy, trace, WithoutWarmup(0.125));
  EXPECT_LE(tight.all.hit_rate, roomy.all.hit_rate);
  EXPECT_EQ(tight.all.num_finished + tight.all.num_refused, 120);
}

TEST(ReplayTest, WhatCannotFitIsRefusedAndCountsAsNever) {
  PolicyFile policy = DefaultPolicyFile();
  policy.blocks_per_dp_group = 14;  // 896 tokens, and every request may generate as many as the longest does
  const ReplayResult result = Replay(policy, Sample("azure_conversation_sample.csv", policy), WithoutWarmup());
  EXPECT_GT(result.all.num_refused, 2);
  EXPECT_EQ(result.all.num_finished + result.all.num_refused, 200);
  EXPECT_TRUE(std::isinf(result.all.ttft_ms.p99));
  EXPECT_THAT(ResultTable(result, nullptr), HasSubstr("never"));
  EXPECT_TRUE(nlohmann::json::parse(ResultJson(result, nullptr))["all"]["ttft_ms"]["p99"].is_null());
}

TEST(ReplayTest, AnAttackIsComparedWithTheTraceAlone) {
  const PolicyFile policy = DefaultPolicyFile();
  RequestTrace trace = Sample("azure_conversation_sample.csv", policy);
  const ReplayResult alone = Replay(policy, trace, WithoutWarmup());
  Amplify(0, 10, 1, trace);
  const ReplayResult attacked = Replay(policy, trace, WithoutWarmup());
  EXPECT_GT(attacked.tenants[0].share, alone.tenants[0].share);
  EXPECT_THAT(ResultTable(attacked, &alone), HasSubstr("vs alone"));
  EXPECT_TRUE(nlohmann::json::parse(ResultJson(attacked, &alone)).contains("alone"));
}

}  // namespace
}  // namespace weir::sim
