// Runs the program as a person or a script would.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "tests/worker/checkpoint_writer.h"

namespace weir::worker {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Outcome {
  int exit_code = -1;
  std::string output;  // both streams
};

Outcome Weir(const std::string& arguments) {
  const std::string command = std::string(WEIR_BINARY_DIR) + "/bin/weir " + arguments + " 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  EXPECT_NE(pipe, nullptr);
  Outcome outcome;
  std::array<char, 4096> buffer;
  while (const size_t count = std::fread(buffer.data(), 1, buffer.size(), pipe))
    outcome.output.append(buffer.data(), count);
  const int status = pclose(pipe);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  return outcome;
}

TEST(InspectTest, TellsAPersonWhatThePublishedModelHolds) {
  TestDirectory directory;
  CheckpointWriter writer(PublishedV3Config(), kernels::DType::kBF16, /*with_data=*/false);
  writer.Shard(163);
  writer.Write(directory.path());
  const Outcome outcome = Weir("inspect " + directory.path() + " --tp 8");
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_THAT(outcome.output, AllOf(HasSubstr("DeepseekV3ForCausalLM: 61 layers"), HasSubstr("671.03 B, of which 36.6"),
                                    HasSubstr("1 layer, 11.61 B parameters"), HasSubstr("163, with 91,991 tensors"),
                                    HasSubstr("routed experts     653.91 GB"), HasSubstr("673.15 GB  = 626.92 GiB"),
                                    HasSubstr("70,272 bytes per token"), HasSubstr("15,279 tokens per GiB")));
  EXPECT_THAT(outcome.output, ::testing::ContainsRegex("\n0-7 +32 .* 85\\.14 GB\n"));
}

TEST(InspectTest, TellsAScript) {
  TestDirectory directory;
  CheckpointWriter(TinyV3Fp8Config()).Write(directory.path());
  const Outcome outcome = Weir("inspect " + directory.path() + " --tp 2 --dp 2 --json --check-scales");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  const nlohmann::json report = nlohmann::json::parse(outcome.output);
  EXPECT_EQ(report["architecture"], "DeepseekV3ForCausalLM");
  EXPECT_EQ(report["kv_bytes_per_token"], 3 * (144 + 32) * 2);
  EXPECT_EQ(report["layout"], nlohmann::json({{"tp", 2}, {"dp", 2}}));
  ASSERT_EQ(report["ranks"].size(), 4u);
  int64_t routed = 0;
  for (const auto& rank : report["ranks"]) {
    EXPECT_EQ(rank["num_experts"], 2);
    routed += rank["bytes"]["routed_experts"].get<int64_t>();
  }
  EXPECT_EQ(report["bytes"]["routed_experts"], routed);
  int64_t by_dtype = 0;
  for (const auto& bytes : report["bytes_by_dtype"]) by_dtype += bytes.get<int64_t>();
  EXPECT_EQ(report["bytes"]["total"], by_dtype);
}

TEST(InspectTest, ExitsWithOneWhenTheDirectoryIsBad) {
  TestDirectory directory;
  CheckpointWriter writer(TinyV3Config());
  writer.Remove("lm_head.weight");
  writer.Write(directory.path());
  const Outcome outcome = Weir("inspect " + directory.path());
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.output, StartsWith("weir inspect: " + directory.path() +
                                         ": tensor \"lm_head.weight\": expected shape "
                                         "[96, 64], found no such tensor"));
  EXPECT_EQ(Weir("inspect " + directory / "nothing").exit_code, 1);
}

TEST(InspectTest, ExitsWithOneWhenTheLayoutDoesNotFitTheModel) {
  TestDirectory directory;
  CheckpointWriter(TinyV3Config()).Write(directory.path());
  const Outcome outcome = Weir("inspect " + directory.path() + " --tp 3");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.output, HasSubstr("tp = 3 does not divide num_attention_heads = 4"));
}

TEST(InspectTest, FindsScalesThatAreNotFiniteWhenAsked) {
  TestDirectory directory;
  CheckpointWriter writer(TinyV3Fp8Config());
  const float nan = NAN;
  std::memcpy(writer.Find("model.layers.1.mlp.experts.5.down_proj.weight_scale_inv").bytes.data(), &nan, sizeof(nan));
  writer.Write(directory.path());
  EXPECT_EQ(Weir("inspect " + directory.path()).exit_code, 0);
  const Outcome outcome = Weir("inspect --check-scales " + directory.path());
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.output,
              HasSubstr("tensor \"model.layers.1.mlp.experts.5.down_proj.weight_scale_inv\": block [0, 0]: "
                        "expected a finite scale above zero, found nan"));
}

TEST(InspectTest, AcceptsADownloadInProgressWhenAsked) {
  TestDirectory directory;
  CheckpointWriter writer(TinyV3Config());
  writer.Write(directory.path());
  std::filesystem::resize_file(directory / "model.safetensors", 8 + writer.HeaderJson(0).size() + 100);
  EXPECT_EQ(Weir("inspect " + directory.path()).exit_code, 1);
  EXPECT_EQ(Weir("inspect --headers-only " + directory.path()).exit_code, 0);
}

TEST(InspectTest, ExitsWithTwoOnWrongUsage) {
  EXPECT_EQ(Weir("inspect").exit_code, 2);
  EXPECT_EQ(Weir("inspect /tmp --tp 0").exit_code, 2);
  EXPECT_EQ(Weir("inspect /tmp --unknown").exit_code, 2);
}

TEST(InspectTest, ShowsAnExampleInItsHelp) {
  const Outcome outcome = Weir("inspect --help");
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("Example: weir inspect"));
}

}  // namespace
}  // namespace weir::worker
