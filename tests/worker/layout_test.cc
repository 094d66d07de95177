#include "worker/checkpoint/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/worker/checkpoint_writer.h"
#include "worker/checkpoint/tensor_table.h"

namespace weir::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ModelConfig Parsed(const nlohmann::json& config) {
  auto parsed = ParseModelConfig(config.dump(), "", "c");
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return *std::move(parsed);
}

TEST(ExpertMapTest, SpreadsExpertsContiguously) {
  const ExpertMap map = ExpertMap::Contiguous(8, 3);  // floor(e * 3 / 8)
  EXPECT_THAT(map.ExpertsOn(0), ElementsAre(0, 1, 2));
  EXPECT_THAT(map.ExpertsOn(1), ElementsAre(3, 4, 5));
  EXPECT_THAT(map.ExpertsOn(2), ElementsAre(6, 7));
  EXPECT_THAT(map.RanksOf(5), ElementsAre(1));
}

TEST(ExpertMapTest, LeavesRanksEmptyWhenThereAreMoreRanksThanExperts) {
  const ExpertMap map = ExpertMap::Contiguous(2, 4);
  EXPECT_THAT(map.ExpertsOn(0), ElementsAre(0));
  EXPECT_THAT(map.ExpertsOn(1), IsEmpty());
  EXPECT_THAT(map.ExpertsOn(2), ElementsAre(1));
  EXPECT_EQ(ExpertMap::Contiguous(0, 4).num_experts(), 0);
}

TEST(ExpertMapTest, ChoosesACopyByDataParallelRank) {
  const auto map = ExpertMap::FromCopies({{0, 2}, {1}, {3, 0, 1}}, 4);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(map->RankFor(0, 0), 0);
  EXPECT_EQ(map->RankFor(0, 1), 2);
  EXPECT_EQ(map->RankFor(0, 2), 0);
  EXPECT_EQ(map->RankFor(1, 1), 1);
  EXPECT_EQ(map->RankFor(2, 1), 0);
  EXPECT_THAT(map->ExpertsOn(0), ElementsAre(0, 2));
  EXPECT_THAT(map->ExpertsOn(1), ElementsAre(1, 2));
}

TEST(ExpertMapTest, RefusesCopiesThatCannotBe) {
  const auto message = [](std::vector<std::vector<int32_t>> copies) {
    return std::string(ExpertMap::FromCopies(std::move(copies), 2).status().message());
  };
  EXPECT_EQ(message({{0}, {}}), "expert map: expert 1 has no rank");
  EXPECT_EQ(message({{0, 2}}), "expert map: expert 0: expected ranks from 0 to 1, found 2");
  EXPECT_EQ(message({{-1}}), "expert map: expert 0: expected ranks from 0 to 1, found -1");
  EXPECT_EQ(message({{1, 1}}), "expert map: expert 0 stands twice on rank 1");
  EXPECT_EQ(message({{1, 0, 1}}), "expert map: expert 0 stands twice on rank 1");
}

TEST(CheckLayoutTest, SaysWhichNumberToChange) {
  const auto message = [](const nlohmann::json& changes, const ParallelLayout& layout) {
    nlohmann::json config = TinyV3Config();
    if (!changes.is_null()) config.update(changes);
    return std::string(CheckLayout(Parsed(config), layout).message());
  };
  EXPECT_EQ(message({}, {4, 2, 7}), "");
  EXPECT_THAT(message({}, {3, 1, 0}), HasSubstr("tp = 3 does not divide num_attention_heads = 4"));
  EXPECT_THAT(message({{"vocab_size", 97}}, {2, 1, 0}), HasSubstr("tp = 2 does not divide vocab_size = 97"));
  EXPECT_THAT(message({{"intermediate_size", 81}}, {2, 1, 0}), HasSubstr("does not divide intermediate_size = 81"));
  EXPECT_EQ(message({{"intermediate_size", 81}, {"first_k_dense_replace", 0}}, {2, 1, 0}), "");  // no dense layer
  EXPECT_THAT(message({{"moe_intermediate_size", 33}}, {2, 1, 0}),
              HasSubstr("does not divide n_shared_experts * moe_intermediate_size = 33"));
  EXPECT_THAT(message({}, {0, 1, 0}), HasSubstr("expected tp and dp of at least 1"));
  EXPECT_THAT(message({}, {1 << 16, 1 << 16, 0}), HasSubstr("tp * dp of at most 4096, found tp = 65536"));
  EXPECT_EQ(message({}, {2, 2, 4}), "expected a rank from 0 to tp * dp - 1 = 3, found 4");
}

std::set<std::string> Names(const std::vector<TensorSpec>& table) {
  std::set<std::string> names;
  for (const TensorSpec& spec : table) EXPECT_TRUE(names.insert(spec.name).second) << spec.name;
  return names;
}

TEST(TensorTableTest, HasTheTensorsOfEachFamily) {
  const std::set<std::string> v3 = Names(TensorTable(Parsed(TinyV3Config())));
  EXPECT_EQ(v3.size(), 207u);
  EXPECT_TRUE(v3.contains("model.layers.0.self_attn.q_b_proj.weight"));
  EXPECT_TRUE(v3.contains("model.layers.0.mlp.down_proj.weight"));
  EXPECT_TRUE(v3.contains("model.layers.2.mlp.gate.e_score_correction_bias"));
  EXPECT_TRUE(v3.contains("model.layers.2.mlp.experts.15.up_proj.weight"));
  EXPECT_TRUE(v3.contains("model.layers.3.shared_head.head.weight"));
  EXPECT_TRUE(v3.contains("model.layers.3.mlp.experts.0.up_proj.weight"));
  EXPECT_FALSE(v3.contains("model.layers.1.mlp.down_proj.weight"));

  const std::set<std::string> lite = Names(TensorTable(Parsed(TinyV2LiteConfig())));
  EXPECT_TRUE(lite.contains("model.layers.0.self_attn.q_proj.weight"));
  EXPECT_FALSE(lite.contains("model.layers.0.self_attn.q_a_proj.weight"));
  EXPECT_FALSE(lite.contains("model.layers.2.mlp.gate.e_score_correction_bias"));
}

TEST(TensorTableTest, ListsADenseModel) {
  nlohmann::json config = TinyV2Config();
  config["n_routed_experts"] = nullptr;
  const std::set<std::string> names = Names(TensorTable(Parsed(config)));
  EXPECT_TRUE(names.contains("model.layers.2.mlp.gate_proj.weight"));
  EXPECT_FALSE(names.contains("model.layers.2.mlp.gate.weight"));
}

TEST(TensorTableTest, SplitsHeadsByRowsAndTheirSumByColumns) {
  const ModelConfig config = Parsed(TinyV3Config());
  const ExpertMap experts = ExpertMap::Contiguous(16, 4);
  const ParallelLayout layout{2, 2, 3};  // tp rank 1 of dp rank 1
  for (const TensorSpec& spec : TensorTable(config)) {
    const TensorPart part = PartOf(spec, layout, experts);
    if (spec.name == "model.layers.0.self_attn.q_b_proj.weight") {
      EXPECT_EQ(part.first_row, 2 * 40);
      EXPECT_EQ(part.rows, 2 * 40);
      EXPECT_EQ(part.cols, 48);
    } else if (spec.name == "model.layers.0.self_attn.o_proj.weight") {
      EXPECT_EQ(part.first_col, 2 * 40);
      EXPECT_EQ(part.cols, 2 * 40);
      EXPECT_EQ(part.rows, 64);
    } else if (spec.name == "model.norm.weight") {
      EXPECT_EQ(part.rows, 1);
      EXPECT_EQ(part.cols, 64);
    } else if (spec.split == TensorSplit::kExpert) {
      EXPECT_EQ(part.rows > 0, spec.expert >= 12) << spec.name;
    } else if (spec.split == TensorSplit::kUnused) {
      EXPECT_EQ(part.rows + part.cols, 0) << spec.name;
    }
  }
}

}  // namespace
}  // namespace weir::worker
