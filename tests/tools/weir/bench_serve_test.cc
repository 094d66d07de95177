// weir bench serve against a gateway without a model.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/tools/weir/fake_inference_service.h"
#include "tests/tools/weir/program.h"
#include "tests/worker/checkpoint_writer.h"

namespace weir::tools {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

json Bench(const FakeGateway& gateway, const std::string& arguments) {
  const Outcome outcome = Weir("bench serve --json --server " + gateway.address() + " " + arguments);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  return json::parse(outcome.output, nullptr, /*allow_exceptions=*/false);
}

TEST(BenchServeTest, ClosedLoopKeepsTheAskedNumberInFlight) {
  const FakeGateway gateway({.token_interval_us = 2000});
  const json report = Bench(gateway, "--concurrency 4 --requests 12 --input-tokens 7 --output-tokens 5 --warmup 0");
  EXPECT_EQ(report["num_requests"], 12);
  EXPECT_EQ(report["num_failed"], 0);
  EXPECT_EQ(report["num_output_tokens"], 60);
  EXPECT_EQ(report["num_prompt_tokens"], 84);
  EXPECT_EQ(gateway.max_concurrent(), 4);
  EXPECT_GE(report["tpot_ms"]["p50"], 1.9);
  EXPECT_GE(report["ttft_ms"]["p50"], 1.9);
}

TEST(BenchServeTest, AsksForExactlyTheLengthsOfThePlan) {
  const FakeGateway gateway;
  Bench(gateway, "--requests 2 --input-tokens 7 --output-tokens 5 --warmup 0");
  for (const v1::GenerateRequest& request : gateway.generations()) {
    EXPECT_EQ(request.token_ids().ids_size(), 7);
    EXPECT_EQ(request.stop_conditions().max_tokens(), 5U);
    EXPECT_TRUE(request.stop_conditions().ignore_eos());
    EXPECT_EQ(request.sampling().temperature(), 0.0F);
  }
}

TEST(BenchServeTest, OpenLoopDoesNotWaitForAnswers) {
  const FakeGateway gateway({.token_interval_us = 50'000});
  const json report = Bench(gateway, "--rate 200 --requests 20 --output-tokens 4 --warmup 0");
  EXPECT_EQ(report["num_requests"], 20);
  EXPECT_GT(gateway.max_concurrent(), 5);
}

TEST(BenchServeTest, ReplaysATrace) {
  const worker::TestDirectory directory;
  worker::WriteTextFile(directory / "trace.csv",
                        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.00,30,4\n"
                        "2023-11-16 18:15:46.05,40,6\n");
  const FakeGateway gateway;
  const json report = Bench(gateway, "--warmup 0 --trace " + (directory / "trace.csv"));
  EXPECT_EQ(report["num_prompt_tokens"], 70);
  EXPECT_EQ(report["num_output_tokens"], 10);
}

TEST(BenchServeTest, PrintsATableWithGoodput) {
  const FakeGateway gateway;
  const Outcome outcome = Weir("bench serve --requests 3 --slo-ttft-ms 60000 --server " + gateway.address());
  EXPECT_THAT(outcome.output, HasSubstr("TTFT"));
  EXPECT_THAT(outcome.output, HasSubstr("3 of 3 within TTFT 60000 ms"));
}

TEST(BenchServeTest, RefusesLengthsBeyondTheContext) {
  const FakeGateway gateway;
  const Outcome outcome = Weir("bench serve --input-tokens 5000 --server " + gateway.address());
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("make 5064 tokens; fake takes 4096"));
}

TEST(BenchServeTest, OpenAndClosedLoopExcludeEachOther) {
  EXPECT_EQ(Weir("bench serve --rate 1 --concurrency 1").exit_code, 2);
}

}  // namespace
}  // namespace weir::tools
