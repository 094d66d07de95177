#include "tools/bench/random_checkpoint.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "gtest/gtest.h"
#include "kernels/float_formats.h"
#include "worker/checkpoint/checkpoint.h"

namespace weir::tools {
namespace {

namespace fs = std::filesystem;

std::string Config(const char* quantization) {
  return std::string(R"({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 300,
    "hidden_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "q_lora_rank": 48, "kv_lora_rank": 40,
    "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 16, "intermediate_size": 200,
    "moe_intermediate_size": 32, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 1, "norm_topk_prob": true, "routed_scaling_factor": 2.5,
    "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16")") +
         quantization + "}";
}
constexpr char kFp8[] = R"(, "quantization_config": {"quant_method": "fp8", "fmt": "e4m3",
    "activation_scheme": "dynamic", "weight_block_size": [128, 128]})";

class RandomCheckpointTest : public testing::Test {
 protected:
  void SetUp() override { fs::remove_all(root_); }
  void TearDown() override { fs::remove_all(root_); }
  std::string Path(const std::string& name) const { return (root_ / name).string(); }

  const fs::path root_ = fs::path(testing::TempDir()) / "random_checkpoint_test";
};

std::string Bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_F(RandomCheckpointTest, OpensAsAPublishedCheckpoint) {
  for (const char* quantization : {"", kFp8}) {
    const std::string directory = Path(quantization[0] == 0 ? "bf16" : "fp8");
    int64_t done = 0, total = -1;
    ASSERT_TRUE(WriteRandomCheckpoint({Config(quantization)}, directory, [&](int64_t d, int64_t t) {
                  EXPECT_GE(d, done);
                  done = d;
                  total = t;
                }).ok());
    EXPECT_EQ(done, total);
    const auto checkpoint = worker::Checkpoint::Open(directory);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const auto& gate = (*checkpoint)->tensor("model.layers.1.mlp.experts.3.gate_proj.weight");
    EXPECT_EQ(gate.dtype, quantization[0] == 0 ? kernels::DType::kBF16 : kernels::DType::kF8E4M3);
  }
}

TEST_F(RandomCheckpointTest, ShardsAndFilesOfOneHoldTheSameWeights) {
  RandomCheckpoint sharded{Config("")};
  sharded.max_file_bytes = 50000;
  ASSERT_TRUE(WriteRandomCheckpoint(sharded, Path("shards"), nullptr).ok());
  ASSERT_TRUE(WriteRandomCheckpoint({Config("")}, Path("one"), nullptr).ok());
  const auto shards = worker::Checkpoint::Open(Path("shards")), one = worker::Checkpoint::Open(Path("one"));
  ASSERT_TRUE(shards.ok()) << shards.status();
  ASSERT_TRUE(one.ok());
  EXPECT_GT((*shards)->files().size(), 2u);
  const auto &a = (*shards)->tensor("lm_head.weight"), &b = (*one)->tensor("lm_head.weight");
  EXPECT_EQ(std::string(static_cast<const char*>(a.data), a.num_bytes),
            std::string(static_cast<const char*>(b.data), b.num_bytes));
}

TEST_F(RandomCheckpointTest, TheSameSeedGivesTheSameBytesAndAnotherDoesNot) {
  RandomCheckpoint checkpoint{Config(kFp8)};
  ASSERT_TRUE(WriteRandomCheckpoint(checkpoint, Path("a"), nullptr).ok());
  ASSERT_TRUE(WriteRandomCheckpoint(checkpoint, Path("b"), nullptr).ok());
  checkpoint.seed = 2;
  ASSERT_TRUE(WriteRandomCheckpoint(checkpoint, Path("c"), nullptr).ok());
  const std::string a = Bytes(Path("a/model.safetensors"));
  EXPECT_FALSE(a.empty());
  EXPECT_EQ(a, Bytes(Path("b/model.safetensors")));
  EXPECT_NE(a, Bytes(Path("c/model.safetensors")));
}

TEST_F(RandomCheckpointTest, RowsHaveUnitNormAndDiffer) {
  ASSERT_TRUE(WriteRandomCheckpoint({Config("")}, Path("a"), nullptr).ok());
  const auto checkpoint = worker::Checkpoint::Open(Path("a"));
  ASSERT_TRUE(checkpoint.ok());
  const auto& head = (*checkpoint)->tensor("lm_head.weight");
  const auto* bits = static_cast<const uint16_t*>(head.data);
  double squares = 0.0;
  bool differs = false;
  for (int64_t c = 0; c < 160; ++c) {
    squares += std::pow(kernels::BFloat16ToFloat(bits[c]), 2);
    differs |= bits[c] != bits[160 + c];
  }
  EXPECT_NEAR(squares, 1.0, 0.5);
  EXPECT_TRUE(differs);
}

TEST_F(RandomCheckpointTest, RefusesADirectoryThatExistsAndAConfigThatIsWrong) {
  ASSERT_TRUE(WriteRandomCheckpoint({Config("")}, Path("a"), nullptr).ok());
  EXPECT_EQ(WriteRandomCheckpoint({Config("")}, Path("a"), nullptr).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(WriteRandomCheckpoint({"{}"}, Path("b"), nullptr).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(fs::exists(Path("b")));
}

}  // namespace
}  // namespace weir::tools
