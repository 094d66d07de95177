// weir bench serve against a gateway without a model.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

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

// With a shell beside it that sends `signals` to $pid.
Outcome Interrupted(const FakeGateway& gateway, const std::string& signals, const std::string& arguments) {
  return Weir("bench serve --server " + gateway.address() + " " + arguments + " & pid=$!; " + signals +
              "; wait $pid; exit $?");
}

TEST(BenchServeTest, AnInterruptReportsOnTheRequestsThatHadEnded) {
  const worker::TestDirectory directory;
  const FakeGateway gateway({.token_interval_us = 20'000});
  const Outcome outcome =
      Interrupted(gateway, "sleep 1; kill -INT $pid",
                  "--rate 20 --requests 1000 --output-tokens 4 --warmup 0 --output " + (directory / "result.json"));
  EXPECT_EQ(outcome.exit_code, 130) << outcome.errors;
  EXPECT_THAT(outcome.output, HasSubstr("interrupted: these are the "));
  const json report = json::parse(std::ifstream(directory / "result.json"), nullptr, false);
  const int64_t num_ended = report["num_requests"], num_cut = report["num_cancelled"],
                num_unsent = report["num_unsent"];
  EXPECT_GT(num_ended, 0);
  EXPECT_GT(num_unsent, 0);
  EXPECT_EQ(num_ended + num_cut + num_unsent, 1000);
  EXPECT_EQ(report["num_failed"], 0);
  EXPECT_EQ(report["num_output_tokens"], 4 * num_ended);
  EXPECT_EQ(std::ssize(report["requests"]), num_ended + num_cut);
}

TEST(BenchServeTest, AnInterruptCancelsWhatRuns) {
  const FakeGateway gateway({.token_interval_us = 50'000});
  const Outcome outcome =
      Interrupted(gateway, "sleep 1; kill -INT $pid", "--concurrency 3 --requests 9 --output-tokens 2000 --warmup 0");
  EXPECT_EQ(outcome.exit_code, 130);
  EXPECT_THAT(outcome.output, HasSubstr("these are the 0 requests that had ended; 3 more were running and 6 were not"));
  EXPECT_EQ(outcome.errors, "");
}

TEST(BenchServeTest, AnInterruptBeforeTheMeasurementEndsAtOnce) {
  const FakeGateway gateway({.token_interval_us = 2'000'000});
  const Outcome outcome = Interrupted(gateway, "sleep 1; kill -INT $pid", "--requests 1");
  EXPECT_EQ(outcome.exit_code, 130);
  EXPECT_EQ(outcome.output, "");
}

TEST(BenchServeTest, RefusesAnOutputThatCannotBeWrittenBeforeItMeasures) {
  const FakeGateway gateway;
  const Outcome outcome = Weir("bench serve --output /nowhere/result.json --server " + gateway.address());
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("--output: cannot write /nowhere/result.json: No such file or directory"));
  EXPECT_THAT(gateway.generations(), testing::IsEmpty());
}

TEST(BenchServeTest, SaysThatTheDiskIsFull) {
  const FakeGateway gateway;
  const std::string bench = "bench serve --requests 2 --server " + gateway.address();
  const Outcome file = Weir(bench + " --output /dev/full");
  EXPECT_EQ(file.exit_code, 1);
  EXPECT_THAT(file.errors, HasSubstr("cannot write /dev/full: No space left on device"));
  const Outcome pipe = Weir(bench + " --json > /dev/full");
  EXPECT_EQ(pipe.exit_code, 1);
  EXPECT_THAT(pipe.errors, HasSubstr("weir: cannot write to standard output: No space left on device"));
}

TEST(BenchServeTest, TheRecordsOfTheOutputGiveTheReportAgain) {
  const worker::TestDirectory directory;
  const FakeGateway gateway({.token_interval_us = 2000});
  Bench(gateway, "--rate 100 --requests 20 --output-tokens 5 --output " + (directory / "result.json"));
  const json report = json::parse(std::ifstream(directory / "result.json"), nullptr, false);
  std::vector<double> ttft_ms;
  for (const json& request : report["requests"]) {
    ttft_ms.push_back(1e3 * (request["first_token_s"].get<double>() - request["due_s"].get<double>()));
  }
  ASSERT_EQ(ttft_ms.size(), 20U);
  std::sort(ttft_ms.begin(), ttft_ms.end());
  EXPECT_NEAR(report["ttft_ms"]["p50"], ttft_ms[9], 1e-6);
  EXPECT_NEAR(report["ttft_ms"]["p90"], ttft_ms[17], 1e-6);
  EXPECT_NEAR(report["ttft_ms"]["max"], ttft_ms[19], 1e-6);
  EXPECT_EQ(report["load"]["rate_per_s"], 100);
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
