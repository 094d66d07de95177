// The published 671B model as a directory of 163 sparse files: every size is real, no byte of data is written.

#include <gtest/gtest.h>

#include "tests/worker/checkpoint_writer.h"
#include "worker/checkpoint/checkpoint.h"

namespace weir::worker {
namespace {

class PublishedShapeTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    directory_ = new TestDirectory;
    CheckpointWriter writer(PublishedV3Config(), kernels::DType::kBF16, /*with_data=*/false);
    writer.Shard(163);
    writer.Write(directory_->path());
    absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(directory_->path());
    ASSERT_TRUE(opened.ok()) << opened.status();
    checkpoint_ = opened->release();
  }
  static void TearDownTestSuite() {
    delete checkpoint_;
    delete directory_;
  }

  static int64_t BytesOfRank(int32_t tp, int32_t dp, int32_t rank) {
    const ParallelLayout layout{tp, dp, rank};
    EXPECT_TRUE(CheckLayout(checkpoint_->config(), layout).ok());
    return RankBytes(*checkpoint_, layout, ExpertMap::Contiguous(256, tp * dp)).total();
  }

  static TestDirectory* directory_;
  static Checkpoint* checkpoint_;
};
TestDirectory* PublishedShapeTest::directory_ = nullptr;
Checkpoint* PublishedShapeTest::checkpoint_ = nullptr;

constexpr double kGigabyte = 1e9;
constexpr double kRounding = 0.0051;  // of a table in hundredths

TEST_F(PublishedShapeTest, HoldsEveryTensorOfTheListing) {
  EXPECT_EQ(checkpoint_->num_tensors(), 91'991);
  EXPECT_EQ(checkpoint_->files().size(), 163u);
}

TEST_F(PublishedShapeTest, CountsParameters) {
  const CheckpointSummary summary = Summarize(*checkpoint_);
  EXPECT_NEAR(summary.num_parameters / kGigabyte, 671.03, kRounding);
  EXPECT_NEAR(summary.num_active_parameters / kGigabyte, 36.6, 0.051);
  EXPECT_NEAR(summary.num_mtp_parameters / kGigabyte, 11.61, kRounding);  // the model card says "11.5B"
}

TEST_F(PublishedShapeTest, SumsBytesByGroup) {
  const CheckpointSummary summary = Summarize(*checkpoint_);
  const ByteSums& bytes = summary.bytes;
  EXPECT_NEAR(bytes.routed_experts / kGigabyte, 653.91, kRounding);
  EXPECT_NEAR(bytes.attention / kGigabyte, 11.41, kRounding);
  EXPECT_NEAR(bytes.shared_experts / kGigabyte, 2.55, kRounding);
  EXPECT_NEAR(bytes.dense_ffn / kGigabyte, 1.19, kRounding);
  EXPECT_NEAR(bytes.embedding / kGigabyte, 1.85, kRounding);
  EXPECT_NEAR(bytes.head / kGigabyte, 1.85, kRounding);
  EXPECT_NEAR(bytes.routers / kGigabyte, 0.21, kRounding);
  EXPECT_NEAR(bytes.scales / kGigabyte, 0.16, kRounding);
  EXPECT_NEAR((bytes.total() - bytes.mtp) / kGigabyte, 673.15, kRounding);
  EXPECT_NEAR((bytes.mtp - summary.mtp_duplicate_bytes) / kGigabyte, 11.72, kRounding);
  EXPECT_NEAR(summary.mtp_duplicate_bytes / kGigabyte, 3.71, kRounding);
  EXPECT_NEAR(bytes.total() / 1073741824.0, 641.29, kRounding);
  EXPECT_EQ(summary.bytes_by_dtype.front().first, "F8_E4M3");
}

TEST_F(PublishedShapeTest, CountsTheBytesOfACachedToken) {
  EXPECT_EQ(Summarize(*checkpoint_).kv_bytes_per_token, 70'272);
}

TEST_F(PublishedShapeTest, SumsBytesByRank) {
  EXPECT_NEAR(BytesOfRank(8, 1, 0) / kGigabyte, 85.14, kRounding);
  EXPECT_NEAR(BytesOfRank(1, 8, 0) / kGigabyte, 100.84, kRounding);
  EXPECT_NEAR(BytesOfRank(16, 1, 0) / kGigabyte, 43.14, kRounding);
  EXPECT_NEAR(BytesOfRank(1, 16, 0) / kGigabyte, 59.96, kRounding);
  EXPECT_EQ(BytesOfRank(8, 1, 7), BytesOfRank(8, 1, 0));
}

TEST_F(PublishedShapeTest, OneRankKeepsEverythingButTheMtpLayer) {
  const ByteSums bytes = Summarize(*checkpoint_).bytes;
  EXPECT_EQ(BytesOfRank(1, 1, 0), bytes.total() - bytes.mtp);
}

TEST_F(PublishedShapeTest, RefusesAWorldThatDoesNotDivideIt) {
  EXPECT_EQ(CheckLayout(checkpoint_->config(), {3, 1, 0}).message(),
            "tp = 3 does not divide num_attention_heads = 128: choose a tp that divides it");
}

}  // namespace
}  // namespace weir::worker
