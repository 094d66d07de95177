#include "tools/weir/cluster/local_cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_join.h"

namespace weir::tools {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string CommandOf(const ClusterPlan& plan, const std::string& name) {
  for (const ProcessSpec& process : plan.processes) {
    if (process.name == name) return absl::StrJoin(process.argv, " ");
  }
  return "none";
}

ClusterOptions TwoByTwo() {
  ClusterOptions options;
  options.model = "/models/v3";
  options.model_name = "v3";
  options.tp = 2;
  options.dp = 2;
  options.threads = 1;
  options.num_blocks = 77;
  return options;
}

TEST(LocalClusterTest, StartsEveryRankTheSchedulerAndTheGateway) {
  const ClusterPlan plan = PlanCluster(TwoByTwo(), "/bin", "/run/w");
  ASSERT_EQ(plan.processes.size(), 6U);
  EXPECT_THAT(CommandOf(plan, "rank 3"), HasSubstr("/bin/weir-worker --model /models/v3 --tp=2 --dp=2 --rank=3"));
  EXPECT_THAT(CommandOf(plan, "rank 3"), HasSubstr("--num-blocks=77"));
  EXPECT_THAT(CommandOf(plan, "rank 3"), HasSubstr("--communicator unix:/run/w/group-3"));
  EXPECT_THAT(CommandOf(plan, "scheduler"),
              HasSubstr("--rank unix:/run/w/rank-0 --rank unix:/run/w/rank-1 --rank unix:/run/w/rank-2 --rank "
                        "unix:/run/w/rank-3"));
  EXPECT_THAT(CommandOf(plan, "gateway"), HasSubstr("--model v3=/models/v3 --scheduler unix:/run/w/scheduler"));
  EXPECT_EQ(plan.address, "127.0.0.1:7000");
  EXPECT_THAT(CommandOf(plan, "gateway"), Not(HasSubstr("--keys")));
}

TEST(LocalClusterTest, AsksThoseToEndFirstWhoTakeWorkIn) {
  const ClusterPlan plan = PlanCluster(TwoByTwo(), "/bin", "/run/w");
  const int rank = plan.processes[0].drain_stage, scheduler = plan.processes[4].drain_stage,
            gateway = plan.processes[5].drain_stage;
  EXPECT_LT(gateway, scheduler);
  EXPECT_LT(scheduler, rank);
}

TEST(LocalClusterTest, HandsKeysCertificatesAndFurtherFlagsOn) {
  ClusterOptions options = TwoByTwo();
  options.keys = "k.yaml";
  options.tls_certificate = "c.pem";
  options.tls_key = "k.pem";
  options.worker_flags = {"--config", "w.yaml"};
  const ClusterPlan plan = PlanCluster(options, "/bin", "/run/w");
  EXPECT_THAT(CommandOf(plan, "gateway"), HasSubstr("--tls-certificate c.pem --tls-key k.pem --keys k.yaml"));
  EXPECT_THAT(CommandOf(plan, "rank 1"), HasSubstr("--config w.yaml"));
}

TEST(LocalClusterTest, LeavesTheGatewayOutWhenAsked) {
  ClusterOptions options = TwoByTwo();
  options.has_gateway = false;
  const ClusterPlan plan = PlanCluster(options, "/bin", "/run/w");
  EXPECT_EQ(CommandOf(plan, "gateway"), "none");
  EXPECT_EQ(plan.address, "unix:/run/w/scheduler");
}

TEST(LocalClusterTest, NamesTheProgramThatIsMissing) {
  const absl::Status status = CheckPlan(PlanCluster(TwoByTwo(), "/nowhere", "/run/w"), "/run/w");
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nowhere/weir-worker is missing"));
}

TEST(LocalClusterTest, RefusesADirectoryWhoseSocketsTheSystemCannotName) {
  ClusterPlan plan;
  EXPECT_TRUE(CheckPlan(plan, std::string(80, 'x')).ok());
  EXPECT_THAT(std::string(CheckPlan(plan, std::string(100, 'x')).message()), HasSubstr("XDG_RUNTIME_DIR"));
}

TEST(ClusterTextTest, CountsInWords) {
  ClusterOptions options;
  options.threads = 2;
  options.num_blocks = 10;
  EXPECT_EQ(LayoutText(options, 64), "1 rank (tp 1, dp 1) of 2 threads; room for 640 tokens");
  options.tp = options.dp = 2;
  options.threads = 1;
  EXPECT_EQ(LayoutText(options, 64), "4 ranks (tp 2, dp 2) of 1 thread; room for 640 tokens in each of 2 groups");
}

TEST(ClusterTextTest, TellsHowToTalkToItFromHere) {
  ClusterOptions options;
  EXPECT_EQ(ChatCommand(options, "bin/weir"), "bin/weir chat");
  options.port = 8000;
  EXPECT_EQ(ChatCommand(options, "weir"), "weir chat --server 127.0.0.1:8000");
  options.host = "0.0.0.0";
  options.keys = "keys.yaml";
  options.tls_certificate = "server.pem";
  EXPECT_EQ(ChatCommand(options, "weir"), "WEIR_API_KEY=... weir chat --server 127.0.0.1:8000 --tls");
}

TEST(LoadLineTest, ReadsWhatWorkersWrite) {
  const auto load = ParseLoadLine("2026-01-01 00:00:00.000 I rank 12: loading: 43 % of 12.4 GB, 1.9 GB/s");
  ASSERT_TRUE(load.has_value());
  EXPECT_EQ(load->percent, 43);
  EXPECT_DOUBLE_EQ(load->total_gb, 12.4);
  EXPECT_DOUBLE_EQ(load->gb_per_s, 1.9);
  EXPECT_DOUBLE_EQ(ParseLoadLine("I rank 0: loading: 100 % of 250.0 MB, 0.1 GB/s")->total_gb, 0.25);
  EXPECT_EQ(ParseLoadLine(R"({"process":"rank 0","message":"loading: 7 % of 1.0 GB, 0.1 GB/s"})")->percent, 7);
}

TEST(LoadLineTest, LeavesOtherLinesAlone) {
  EXPECT_FALSE(ParseLoadLine("rank 0: serving at unix:/run/w/rank-0").has_value());
  EXPECT_FALSE(ParseLoadLine("rank 0: loading: 43 % of 12.4 GB").has_value());
  EXPECT_FALSE(ParseLoadLine("rank 0: loading: 43 % of 12.4 XB, 1.9 GB/s").has_value());
  EXPECT_FALSE(ParseLoadLine("").has_value());
}

constexpr CacheNeeds kNeeds{.bytes_per_block = 1 << 20,
                            .free_bytes = int64_t{2} << 30,
                            .blocks_per_seq = 10,
                            .max_num_seqs = 1000,
                            .world_size = 2};

TEST(ChooseNumBlocksTest, SharesHalfOfTheFreeMemoryBetweenTheRanks) { EXPECT_EQ(ChooseNumBlocks(kNeeds), 512); }

TEST(ChooseNumBlocksTest, TakesNoMoreThanAllSequencesCanUse) {
  CacheNeeds needs = kNeeds;
  needs.max_num_seqs = 4;
  EXPECT_EQ(ChooseNumBlocks(needs), 40);
}

TEST(ChooseNumBlocksTest, TakesFourGibibytesAtMost) {
  CacheNeeds needs = kNeeds;
  needs.free_bytes = int64_t{1} << 40;
  EXPECT_EQ(ChooseNumBlocks(needs), 4096);
}

TEST(ChooseNumBlocksTest, AlwaysHasRoomForOneSequence) {
  CacheNeeds needs = kNeeds;
  needs.free_bytes = -5;
  EXPECT_EQ(ChooseNumBlocks(needs), 10);
}

}  // namespace
}  // namespace weir::tools
