#include "worker/checkpoint/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/worker/checkpoint_writer.h"

namespace weir::worker {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::StartsWith;
using Shape = kernels::RouterShape;

absl::StatusOr<ModelConfig> Parse(const json& config, const std::string& generation = "") {
  return ParseModelConfig(config.dump(), generation, "c");
}

ModelConfig Parsed(const json& config, const std::string& generation = "") {
  auto parsed = Parse(config, generation);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() ? *std::move(parsed) : ModelConfig{};
}

json With(json config, const json& changes) {
  for (const auto& [pointer, value] : changes.items()) config[json::json_pointer(pointer)] = value;
  return config;
}

// ---- what the numbers mean ----

TEST(ModelConfigTest, ReadsThePublishedV3) {
  const ModelConfig config = Parsed(PublishedV3Config());
  EXPECT_EQ(config.family, ModelConfig::Family::kDeepseekV3);
  EXPECT_EQ(config.cache_width(), 576);
  EXPECT_EQ(config.qk_head_dim(), 192);
  EXPECT_FALSE(config.IsMoeLayer(2));
  EXPECT_TRUE(config.IsMoeLayer(3));
  ASSERT_TRUE(config.fp8.has_value());
  EXPECT_EQ(config.fp8->scale_format, kernels::ScaleFormat::kF32);
  EXPECT_NEAR(config.SoftmaxScale(), 0.1352337789, 1e-10);
  EXPECT_EQ(config.RopeAmplitude(), 1.0);
  EXPECT_EQ(config.bos_token_id, 0);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(1));
  const Shape router = config.Router();
  EXPECT_EQ(router.scoring, Shape::Scoring::kSigmoid);
  EXPECT_EQ(router.group_score, Shape::GroupScore::kTopTwoSum);
  EXPECT_EQ(router.num_groups, 8);
  EXPECT_EQ(router.num_groups_kept, 4);
  EXPECT_TRUE(router.normalizes_weights);
  EXPECT_EQ(router.scaling_factor, 2.5f);
}

// The table of the published models: theta 10000, factor 40, 4096 positions (computed from the paper's formulas).
TEST(ModelConfigTest, StretchesFrequenciesAsYarnSays) {
  const std::vector<double> frequencies = Parsed(PublishedV3Config()).RopeFrequencies();
  const std::vector<double> expected = {1,
                                        0.749894209,
                                        0.562341325,
                                        0.421696503,
                                        0.316227766,
                                        0.237137371,
                                        0.177827941,
                                        0.133352143,
                                        0.1,
                                        0.0749894209,
                                        0.0562341325,
                                        0.0390069266,
                                        0.0268793601,
                                        0.0183781462,
                                        0.0124479559,
                                        0.00833450895,
                                        0.0055,
                                        0.00356199749,
                                        0.0022493653,
                                        0.00137051364,
                                        0.000790569415,
                                        0.000414990398,
                                        0.000177827941,
                                        3.33380358e-05,
                                        2.5e-05,
                                        1.87473552e-05,
                                        1.40585331e-05,
                                        1.05424126e-05,
                                        7.90569415e-06,
                                        5.92843426e-06,
                                        4.44569853e-06,
                                        3.33380358e-06};
  ASSERT_EQ(frequencies.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(frequencies[i] / expected[i], 1.0, 6e-9) << i;
}

TEST(ModelConfigTest, LeavesPlainRopeAlone) {
  json config = PublishedV3Config();
  config.erase("rope_scaling");
  const ModelConfig plain = Parsed(config);
  EXPECT_NEAR(plain.SoftmaxScale(), 0.0721687836, 1e-10);
  EXPECT_EQ(plain.RopeFrequencies()[16], 0.01);
  EXPECT_EQ(plain.RopeAmplitude(), 1.0);
}

TEST(ModelConfigTest, TakesMscaleForCosinesAndMscaleAllDimForTheSoftmax) {
  const json config = PublishedV3Config();
  EXPECT_NEAR(
      Parsed(With(config, {{"/rope_scaling/mscale", 0.707}, {"/rope_scaling/mscale_all_dim", 0.707}})).SoftmaxScale(),
      0.1147213868, 1e-10);
  const ModelConfig uneven = Parsed(With(config, {{"/rope_scaling/mscale_all_dim", 0.0}}));
  EXPECT_NEAR(uneven.SoftmaxScale(), 0.0721687836, 1e-10);
  EXPECT_NEAR(uneven.RopeAmplitude(), 1.3688879454, 1e-10);
}

TEST(ModelConfigTest, RoutesV2WithoutGroupsOrByTheBestOfEachGroup) {
  const Shape greedy = Parsed(TinyV2LiteConfig()).Router();
  EXPECT_EQ(greedy.scoring, Shape::Scoring::kSoftmax);
  EXPECT_EQ(greedy.group_score, Shape::GroupScore::kNone);
  EXPECT_FALSE(greedy.normalizes_weights);
  const Shape limited = Parsed(TinyV2Config()).Router();
  EXPECT_EQ(limited.group_score, Shape::GroupScore::kMax);
  EXPECT_EQ(limited.scaling_factor, 16.0f);
  // The published V2 code scales weights only where it does not normalise them.
  const Shape normalized = Parsed(With(TinyV2Config(), {{"/norm_topk_prob", true}})).Router();
  EXPECT_TRUE(normalized.normalizes_weights);
  EXPECT_EQ(normalized.scaling_factor, 1.0f);
}

TEST(ModelConfigTest, KnowsTheScaleFormatOfV31) {
  const ModelConfig config = Parsed(With(PublishedV3Config(), {{"/quantization_config/scale_fmt", "ue8m0"}}));
  EXPECT_EQ(config.fp8->scale_format, kernels::ScaleFormat::kUe8m0);
}

// ---- spellings ----

TEST(ModelConfigTest, ReadsOldAndNewSpellingsOfRopeAlike) {
  const json old_spelling = TinyV3Config();
  json new_spelling = old_spelling;
  json rope = new_spelling["rope_scaling"];
  new_spelling.erase("rope_scaling");
  new_spelling.erase("rope_theta");
  rope.erase("type");
  rope["rope_type"] = "yarn";
  rope["rope_theta"] = 5000.0;
  new_spelling["rope_parameters"] = rope;
  const ModelConfig config = Parsed(new_spelling);
  EXPECT_EQ(config.rope_theta, 5000.0);
  EXPECT_EQ(config.RopeFrequencies(), Parsed(With(old_spelling, {{"/rope_theta", 5000.0}})).RopeFrequencies());

  new_spelling["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 10000.0}};
  EXPECT_FALSE(Parsed(new_spelling).yarn.has_value());
  EXPECT_FALSE(Parsed(With(old_spelling, {{"/rope_scaling", nullptr}})).yarn.has_value());
}

TEST(ModelConfigTest, FillsInWhatTransformersLeavesOut) {
  json config = TinyV3Config();
  for (const char* field : {"scoring_func", "topk_method", "moe_layer_freq", "model_type", "torch_dtype", "hidden_act",
                            "num_nextn_predict_layers", "attention_bias", "tie_word_embeddings", "bos_token_id"}) {
    config.erase(field);
  }
  config["dtype"] = "bfloat16";
  const ModelConfig parsed = Parsed(config);
  EXPECT_EQ(parsed.Router().scoring, Shape::Scoring::kSigmoid);
  EXPECT_EQ(parsed.topk_method, "noaux_tc");
  EXPECT_EQ(parsed.torch_dtype, "bfloat16");
  EXPECT_EQ(parsed.bos_token_id, -1);
  EXPECT_EQ(parsed.num_nextn_predict_layers, 0);
}

TEST(ModelConfigTest, IgnoresFieldsThatOnlyTrainingReads) {
  EXPECT_TRUE(Parse(With(TinyV3Config(), {{"/aux_loss_alpha", 0.001},
                                          {"/seq_aux", true},
                                          {"/ep_size", 8},
                                          {"/pretraining_tp", 1},
                                          {"/attention_dropout", 0.1},
                                          {"/auto_map", {{"AutoConfig", "x"}}},
                                          {"/something_new", {1, 2}}}))
                  .ok());
}

TEST(ModelConfigTest, LetsTheGenerationConfigEndAnswers) {
  const json config = TinyV3Config();
  EXPECT_THAT(Parsed(config).eos_token_ids, ElementsAre(1));
  EXPECT_THAT(Parsed(config, R"({"eos_token_id": [2, 3]})").eos_token_ids, ElementsAre(2, 3));
  EXPECT_THAT(Parsed(config, R"({"temperature": 0.6})").eos_token_ids, ElementsAre(1));
  EXPECT_THAT(Parsed(With(config, {{"/eos_token_id", nullptr}})).eos_token_ids, IsEmpty());
}

// ---- refusals ----

struct BadConfig {
  const char* name;
  json (*config)();
  json changes;  // JSON pointer -> value
  std::string message;
};
void PrintTo(const BadConfig& bad, std::ostream* out) { *out << bad.name; }

const std::string kOnly = " (nothing else is supported), found ";

const BadConfig kBadConfigs[] = {
    {"UnknownArchitecture",
     TinyV3Config,
     {{"/architectures/0", "LlamaForCausalLM"}},
     "c: architectures: expected one of DeepseekV3ForCausalLM (V3, R1, V3.1), DeepseekV2ForCausalLM (V2, V2-Lite), "
     "found "
     "\"LlamaForCausalLM\""},
    {"NoArchitecture",
     TinyV3Config,
     {{"/architectures", json::array()}},
     "c: architectures: expected a list that begins with one of DeepseekV3ForCausalLM"},
    {"Negative",
     TinyV3Config,
     {{"/hidden_size", -64}},
     "c: hidden_size: expected an integer from 1 to 131072, found -64"},
    {"Zero",
     TinyV3Config,
     {{"/num_attention_heads", 0}},
     "c: num_attention_heads: expected an integer from 1 to 4096, found 0"},
    {"ZeroExperts",
     TinyV3Config,
     {{"/n_routed_experts", 0}},
     "c: n_routed_experts: expected an integer from 1 to 4096, found 0"},
    {"Missing",
     TinyV3Config,
     {{"/kv_lora_rank", nullptr}},
     "c: kv_lora_rank: expected an integer from 1 to 65536, found nothing"},
    {"Text",
     TinyV3Config,
     {{"/vocab_size", "many\n"}},
     "c: vocab_size: expected an integer from 1 to 4194304, found \"many\\x0a\""},
    {"Fraction",
     TinyV3Config,
     {{"/vocab_size", 96.5}},
     "c: vocab_size: expected an integer from 1 to 4194304, found 96.5"},
    {"Huge",
     TinyV3Config,
     {{"/num_hidden_layers", 18446744073709551615ULL}},
     "c: num_hidden_layers: expected an integer from 1 to 512, found 18446744073709551615"},
    {"OddRopeWidth",
     TinyV3Config,
     {{"/qk_rope_head_dim", 15}},
     "c: qk_rope_head_dim: expected an even number, found 15"},
    {"MoreExpertsPerTokenThanExperts",
     TinyV2LiteConfig,
     {{"/num_experts_per_tok", 17}},
     "c: num_experts_per_tok: expected at most n_routed_experts = 16, found 17"},
    {"MoreExpertsPerTokenThanTheKeptGroupsHold",
     TinyV3Config,
     {{"/num_experts_per_tok", 9}},
     "c: num_experts_per_tok: expected at most topk_group * n_routed_experts / n_group = 8, found 9"},
    {"GroupsDoNotDivide",
     TinyV3Config,
     {{"/n_group", 3}},
     "c: n_group: expected a divisor of n_routed_experts = 16, found 3"},
    {"MoreGroupsKeptThanThereAre",
     TinyV3Config,
     {{"/topk_group", 5}},
     "c: topk_group: expected at most n_group = 4, found 5"},
    {"GroupsOfOneExpert",
     TinyV3Config,
     {{"/n_group", 16}, {"/topk_group", 8}},
     "c: n_group: expected groups of at least two experts (a group's score is the sum of its two best), found 16 "
     "groups of "
     "16 experts: one each"},
    {"TooManyExpertsInAll",
     TinyV3Config,
     {{"/n_routed_experts", 4096}, {"/num_hidden_layers", 100}},
     "c: n_routed_experts: expected at most 262144 experts in all layers together, found 4096"},
    {"V3WithSoftmax",
     TinyV3Config,
     {{"/scoring_func", "softmax"}},
     "c: scoring_func: expected \"sigmoid\" for DeepseekV3ForCausalLM" + kOnly + "\"softmax\""},
    {"V2WithSigmoid",
     TinyV2Config,
     {{"/scoring_func", "sigmoid"}},
     "c: scoring_func: expected \"softmax\" for DeepseekV2ForCausalLM" + kOnly + "\"sigmoid\""},
    {"V3WithGreedy",
     TinyV3Config,
     {{"/topk_method", "greedy"}},
     "c: topk_method: expected \"noaux_tc\" for DeepseekV3ForCausalLM" + kOnly + "\"greedy\""},
    {"V2WithBias",
     TinyV2Config,
     {{"/topk_method", "noaux_tc"}},
     "c: topk_method: expected \"greedy\" or \"group_limited_greedy\" for DeepseekV2ForCausalLM" + kOnly +
         "\"noaux_tc\""},
    {"OtherActivation",
     TinyV3Config,
     {{"/hidden_act", "gelu"}},
     "c: hidden_act: expected \"silu\"" + kOnly + "\"gelu\""},
    {"AttentionBias", TinyV3Config, {{"/attention_bias", true}}, "c: attention_bias: expected false" + kOnly + "true"},
    {"TiedEmbeddings",
     TinyV3Config,
     {{"/tie_word_embeddings", true}},
     "c: tie_word_embeddings: expected false" + kOnly + "true"},
    {"HalfRope", TinyV3Config, {{"/rope_interleave", false}}, "c: rope_interleave: expected true" + kOnly + "false"},
    {"SlidingWindow",
     TinyV3Config,
     {{"/sliding_window", 128}},
     "c: sliding_window: expected no such field (not supported), found 128"},
    {"SlidingLayers",
     TinyV3Config,
     {{"/layer_types", {"full_attention", "sliding_attention"}}},
     "c: layer_types: expected \"full_attention\" for every layer" + kOnly + "a list of 2"},
    {"SparseIndexer",
     TinyV3Config,
     {{"/index_topk", 2048}},
     "c: index_topk: expected no such field (not supported), found 2048"},
    {"OtherRope",
     TinyV3Config,
     {{"/rope_scaling/type", "linear"}},
     "c: rope_scaling.type: expected \"yarn\" or \"default\"" + kOnly + "\"linear\""},
    {"TwoRopeTypes",
     TinyV3Config,
     {{"/rope_scaling/rope_type", "default"}},
     "c: rope_scaling.rope_type: expected the same as type, \"yarn\", found \"default\""},
    {"NoRopeType",
     TinyV3Config,
     {{"/rope_scaling/type", nullptr}},
     "c: rope_scaling.type: expected \"yarn\" or \"default\", found nothing, beside a factor"},
    {"TwoRopes",
     TinyV3Config,
     {{"/rope_parameters", {{"rope_type", "default"}}}},
     "c: rope_parameters: expected one of rope_scaling and rope_parameters, found both, with different contents"},
    {"TwoThetas",
     TinyV3Config,
     {{"/rope_scaling/rope_theta", 5}},
     "c: rope_scaling.rope_theta: expected the same as rope_theta, 10000, found 5"},
    {"RopeIsNoObject", TinyV3Config, {{"/rope_scaling", 4}}, "c: rope_scaling: expected a JSON object, found 4"},
    {"PartialRotary",
     TinyV3Config,
     {{"/rope_scaling/partial_rotary_factor", 0.5}},
     "c: rope_scaling.partial_rotary_factor: expected 1" + kOnly + "0.5"},
    {"YarnWithoutFactor",
     TinyV3Config,
     {{"/rope_scaling/factor", nullptr}},
     "c: rope_scaling.factor: expected a number from 1 to 1e+06, found nothing"},
    {"YarnWithAttentionFactor",
     TinyV3Config,
     {{"/rope_scaling/attention_factor", 1.2}},
     "c: rope_scaling.attention_factor: expected no such field (not supported), found 1.2"},
    {"YarnBetasReversed",
     TinyV3Config,
     {{"/rope_scaling/beta_fast", 0.5}},
     "c: rope_scaling.beta_fast: expected at least beta_slow = 1, found 0.5"},
    {"Theta", TinyV3Config, {{"/rope_theta", 1}}, "c: rope_theta: expected a number from 1 to 1e+12, found 1"},
    {"Epsilon", TinyV3Config, {{"/rms_norm_eps", 0}}, "c: rms_norm_eps: expected a number from 1e-12 to 1, found 0"},
    {"ScalingFactor",
     TinyV3Config,
     {{"/routed_scaling_factor", -1}},
     "c: routed_scaling_factor: expected a number from 1e-06 to 1e+06, found -1"},
    {"NoContext",
     TinyV3Config,
     {{"/max_position_embeddings", 0}},
     "c: max_position_embeddings: expected an integer from 1 to 1073741824, found 0"},
    {"OtherQuantization",
     TinyV3Fp8Config,
     {{"/quantization_config/quant_method", "awq"}},
     "c: quantization_config.quant_method: expected \"fp8\"" + kOnly + "\"awq\""},
    {"OtherFp8",
     TinyV3Fp8Config,
     {{"/quantization_config/fmt", "e5m2"}},
     "c: quantization_config.fmt: expected \"e4m3\"" + kOnly + "\"e5m2\""},
    {"StaticActivations",
     TinyV3Fp8Config,
     {{"/quantization_config/activation_scheme", "static"}},
     "c: quantization_config.activation_scheme: expected \"dynamic\"" + kOnly + "\"static\""},
    {"OtherBlocks",
     TinyV3Fp8Config,
     {{"/quantization_config/weight_block_size", {32, 32}}},
     "c: quantization_config.weight_block_size: expected [128, 128]" + kOnly + "[32,32]"},
    {"NoBlocks",
     TinyV3Fp8Config,
     {{"/quantization_config/weight_block_size", nullptr}},
     "c: quantization_config.weight_block_size: expected [128, 128]" + kOnly + "something else"},
    {"OtherScales",
     TinyV3Fp8Config,
     {{"/quantization_config/scale_fmt", "e5m3"}},
     "c: quantization_config.scale_fmt: expected \"ue8m0\", or no such field for f32 scales" + kOnly + "\"e5m3\""},
    {"EosBeyondTheVocabulary",
     TinyV3Config,
     {{"/eos_token_id", {1, 96}}},
     "c: eos_token_id: expected token ids from 0 to vocab_size - 1 = 95, found a list of 2"},
    {"NegativeBos",
     TinyV3Config,
     {{"/bos_token_id", -1}},
     "c: bos_token_id: expected token ids from 0 to vocab_size - 1 = 95, found -1"},
};

class BadConfigTest : public ::testing::TestWithParam<BadConfig> {};
INSTANTIATE_TEST_SUITE_P(Bad, BadConfigTest, ::testing::ValuesIn(kBadConfigs),
                         [](const auto& test) { return test.param.name; });

TEST_P(BadConfigTest, IsRefusedByName) {
  const auto parsed = Parse(With(GetParam().config(), GetParam().changes));
  ASSERT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(parsed.status().message()), StartsWith(GetParam().message));
}

TEST(ModelConfigTest, RefusesTextThatIsNoConfig) {
  const auto message = [](const std::string& text, const std::string& generation = "") {
    return std::string(ParseModelConfig(text, generation, "c").status().message());
  };
  EXPECT_THAT(message(""), StartsWith("c: not valid JSON: parse error at line 1, column 1"));
  EXPECT_THAT(message("[]"), StartsWith("c: the document: expected a JSON object, found a list of 0"));
  EXPECT_THAT(message("{\"vocab_size\": NaN}"), StartsWith("c: not valid JSON: parse error"));
  EXPECT_THAT(message("{\"rope_theta\": 1e999}"), StartsWith("c: not valid JSON: number overflow"));
  EXPECT_THAT(message(R"({"a": 1, "a": 2})"), StartsWith("c: not valid JSON: the key \"a\" stands twice"));
  const std::string good = TinyV3Config().dump();
  EXPECT_THAT(message(good, "{"), StartsWith("c (generation_config.json): not valid JSON"));
  EXPECT_THAT(message(good, R"({"eos_token_id": 96})"),
              StartsWith("c (generation_config.json): eos_token_id: expected token ids"));
}

}  // namespace
}  // namespace weir::worker
