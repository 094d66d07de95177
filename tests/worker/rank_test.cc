#include "worker/rank.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/kernels/forwarding_backend.h"
#include "tests/worker/checkpoint_writer.h"
#include "tests/worker/step_runner.h"
#include "tests/worker/tiny_models.h"
#include "worker/backend_choice.h"

// One rank: plans in, results out, and what happens to plans that are wrong.

namespace weir::worker {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr RankOptions kSmall = {
    .num_blocks = 32, .max_num_seqs = 16, .max_num_batched_tokens = 256, .max_model_len = 256};

SequenceWork Prompt(SlotId slot, std::vector<int32_t> tokens, std::vector<int32_t> blocks) {
  SequenceWork work = {.slot = slot,
                       .has_setup = true,
                       .num_tokens = static_cast<int32_t>(tokens.size()),
                       .new_block_ids = std::move(blocks),
                       .samples = true};
  work.setup = {.num_prompt_tokens = work.num_tokens, .token_ids = std::move(tokens)};
  work.setup.sampling = {.temperature = 0.0f, .num_top_logprobs = 20, .wants_logprob = true};
  return work;
}

// The step after: the token that was sampled.
SequenceWork Next(SlotId slot, int32_t position) {
  return {.slot = slot, .first_position = position, .num_tokens = 1, .samples = true};
}

class RankTest : public ::testing::TestWithParam<const char*> {
 protected:
  void Load(const Checkpoint& checkpoint, const RankOptions& options = kSmall) {
    rank_.reset();
    backend_ = *NewBackend({.name = GetParam(), .num_threads = 2});
    absl::StatusOr<std::unique_ptr<Rank>> rank = Rank::Load(checkpoint, options, backend_.get(), nullptr, nullptr);
    ASSERT_TRUE(rank.ok()) << rank.status();
    rank_ = *std::move(rank);
  }

  StepResult Run(std::vector<SequenceWork> work) {
    absl::StatusOr<StepResult> result = rank_->Run({.work = std::move(work)});
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : StepResult{};
  }

  // A prompt's answer, alone in slot 0, with the given sampling.
  std::vector<int32_t> Answer(const std::vector<int32_t>& prompt, int32_t count, const SequenceSetup& setup) {
    SequenceWork work = Prompt(0, prompt, {0, 1});
    work.setup.seed = setup.seed;
    work.setup.request_id = setup.request_id;
    work.setup.sampling = setup.sampling;
    std::vector<int32_t> tokens = {Run({work}).sequences[0].sampled.token};
    while (static_cast<int32_t>(tokens.size()) < count) {
      const auto position = static_cast<int32_t>(prompt.size() + tokens.size() - 1);
      tokens.push_back(Run({Next(0, position)}).sequences[0].sampled.token);
    }
    return tokens;
  }

  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Rank> rank_;
};

std::string NameOf(const ::testing::TestParamInfo<const char*>& test) { return test.param; }

std::vector<const char*> Backends() {
  std::vector<const char*> backends = {"reference"};
  if (NewBackend({.name = "cpu"}).ok()) backends.push_back("cpu");
  return backends;
}

TEST_P(RankTest, RunsTheOthersWhenASequenceCannot) {
  Load(TinyModel("v3"));
  const auto alone = Run({Prompt(3, {4, 5, 6}, {9})}).sequences[0].sampled;
  const StepResult result = Run({Prompt(1, {1, 2, 96}, {0}), Next(2, 10), Prompt(4, {4, 5, 6}, {8}),
                                 Prompt(5, {1, 2}, {32}), Prompt(99, {1}, {0}), Prompt(4, {1}, {1})});
  ASSERT_THAT(result.sequences, SizeIs(6));
  EXPECT_THAT(result.sequences[0].error, HasSubstr("token_ids[2] is 96"));
  EXPECT_THAT(result.sequences[1].error, HasSubstr("slot 2 holds no sequence"));
  EXPECT_THAT(result.sequences[2].error, IsEmpty());
  EXPECT_EQ(result.sequences[2].sampled.top_logprobs, alone.top_logprobs);
  EXPECT_THAT(result.sequences[3].error, HasSubstr("block 32 does not exist"));
  EXPECT_THAT(result.sequences[4].error, HasSubstr("slot 99 does not exist"));
  EXPECT_THAT(result.sequences[5].error, HasSubstr("twice"));
  for (const int i : {0, 1, 3, 4, 5}) EXPECT_FALSE(result.sequences[i].has_sampled);
}

TEST_P(RankTest, RefusesAPlanAsAWholeAndGoesOn) {
  Load(TinyModel("v3"));
  const StepResult first = Run({Prompt(0, SomeTokens(1, 70), {0, 1})});
  std::vector<int32_t> tokens(kSmall.max_num_batched_tokens + 1, 1);
  absl::StatusOr<StepResult> result = rank_->Run({.work = {Prompt(1, tokens, {2, 3, 4, 5, 6})}});
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("the plan has 257 rows"));
  result = rank_->Run({.epoch = 3});
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("epoch 3"));
  SequenceWork elsewhere = Prompt(0, {1}, {0});
  elsewhere.dp_rank = 1;
  result = rank_->Run({.work = {elsewhere}});
  EXPECT_TRUE(absl::IsInvalidArgument(result.status())) << result.status();

  EXPECT_THAT(Run({Next(0, 70)}).sequences[0].error, IsEmpty()) << "the slot was harmed";
}

// All memory begins as NaN.
class NanMemory final : public kernels::ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  absl::StatusOr<kernels::DeviceBuffer> Allocate(int64_t num_bytes) override {
    absl::StatusOr<kernels::DeviceBuffer> buffer = inner_.Allocate(num_bytes);
    if (!buffer.ok()) return buffer;
    const std::vector<uint8_t> nan(num_bytes, 0xff);
    inner_.CopyToDevice(buffer->View(kernels::DType::kF8E4M3, 1, num_bytes), nan.data());
    return buffer;
  }
};

// The cache is taken as it comes from the system, and blocks as others left them.
TEST_P(RankTest, ReadsNoMemoryThatItHasNotWritten) {
  for (const char* model : {"v3", "v3_fp8"}) {
    const std::vector<int32_t> prompt = SomeTokens(1, 70);
    const SequenceSetup setup = {.sampling = {.temperature = 0.0f}};
    Load(TinyModel(model));
    const std::vector<int32_t> expected = Answer(prompt, 8, setup);

    rank_.reset();
    NanMemory memory(*backend_);
    absl::StatusOr<std::unique_ptr<Rank>> rank = Rank::Load(TinyModel(model), kSmall, &memory, nullptr, nullptr);
    ASSERT_TRUE(rank.ok()) << rank.status();
    rank_ = *std::move(rank);
    EXPECT_EQ(Answer(prompt, 8, setup), expected);
    rank_.reset();
  }
}

TEST_P(RankTest, AnEmptyPlanIsAStep) {
  Load(TinyModel("v3"));
  const absl::StatusOr<StepResult> result = rank_->Run({.step_id = 17, .released = {{.slot = 3}}});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->step_id, 17u);
  EXPECT_THAT(result->sequences, IsEmpty());
}

TEST_P(RankTest, ARowThatIsNotFiniteConcernsItsSequenceOnly) {
  Load(TinyModel("v3_nan"));
  const StepResult clean = Run({Prompt(0, SomeTokens(1, 20), {0}), Prompt(2, SomeTokens(2, 9), {2})});
  const StepResult result =
      Run({Prompt(0, SomeTokens(1, 20), {0}), Prompt(1, {3, kNanToken, 4, 5}, {1}), Prompt(2, SomeTokens(2, 9), {2})});
  EXPECT_FALSE(result.sequences[1].sampled.is_finite);
  EXPECT_EQ(result.sequences[1].sampled.token, -1);
  EXPECT_TRUE(result.sequences[1].has_sampled);
  EXPECT_EQ(result.sequences[0].sampled.top_logprobs, clean.sequences[0].sampled.top_logprobs);
  EXPECT_EQ(result.sequences[2].sampled.top_logprobs, clean.sequences[1].sampled.top_logprobs);
  // Nothing was sampled that could be continued with.
  EXPECT_THAT(Run({Next(1, 4)}).sequences[0].error, HasSubstr("only those below 4 are known"));
  // The block is used again: what stood in it does not matter, also behind the new sequence's end.
  const StepResult again = Run({Prompt(3, SomeTokens(2, 3), {1})});
  const StepResult fresh = Run({Prompt(4, SomeTokens(2, 3), {7})});
  EXPECT_TRUE(again.sequences[0].sampled.is_finite);
  EXPECT_EQ(again.sequences[0].sampled.top_logprobs, fresh.sequences[0].sampled.top_logprobs);
}

TEST_P(RankTest, ReportsTheDistributionAfterEachPromptToken) {
  Load(TinyModel("v3"));
  const std::vector<int32_t> prompt = SomeTokens(5, 150);  // more than one pass through the head
  SequenceWork work = Prompt(0, prompt, {0, 1, 2});
  work.reports_prompt_logprobs = true;
  const SequenceResult result = Run({work}).sequences[0];
  ASSERT_THAT(result.prompt_logprobs, SizeIs(150));
  for (int i = 0; i < 149; ++i) {
    const kernels::SampleOutput& output = result.prompt_logprobs[i];
    EXPECT_EQ(output.token, prompt[i + 1]);
    ASSERT_THAT(output.top_logprobs, SizeIs(20));
    for (const auto& [token, logprob] : output.top_logprobs) {
      if (token == prompt[i + 1]) {
        EXPECT_EQ(logprob, output.logprob);
      }
    }
    EXPECT_LE(output.logprob, output.top_logprobs[0].second);
  }
  EXPECT_EQ(result.prompt_logprobs[149].token, -1) << "what follows was not known";
  EXPECT_EQ(result.prompt_logprobs[149].top_logprobs, result.sampled.top_logprobs);
}

// ---- sampling ----

TEST_P(RankTest, DrawsTheSameTokensFromTheSameSeed) {
  Load(TinyModel("v3"));
  const std::vector<int32_t> prompt = SomeTokens(1, 20);
  SequenceSetup setup = {.request_id = 11, .seed = 22};
  setup.sampling.temperature = 1.5f;
  const std::vector<int32_t> answer = Answer(prompt, 12, setup);
  EXPECT_EQ(Answer(prompt, 12, setup), answer);
  EXPECT_GT(std::set<int32_t>(answer.begin(), answer.end()).size(), 3u);
  SequenceSetup other = setup;
  other.seed = 23;
  EXPECT_NE(Answer(prompt, 12, other), answer);
  other = setup;
  other.request_id = 12;
  EXPECT_NE(Answer(prompt, 12, other), answer);

  // In mid-answer, in another slot, after a preemption: the same continuation.
  SequenceWork work = Prompt(6, prompt, {4, 5});
  work.setup.request_id = setup.request_id;
  work.setup.seed = setup.seed;
  work.setup.sampling = setup.sampling;
  work.setup.token_ids.insert(work.setup.token_ids.end(), answer.begin(), answer.begin() + 5);
  work.num_tokens += 5;
  std::vector<int32_t> resumed(answer.begin(), answer.begin() + 5);
  resumed.push_back(Run({work}).sequences[0].sampled.token);
  while (resumed.size() < 12) {
    resumed.push_back(Run({Next(6, static_cast<int32_t>(19 + resumed.size()))}).sequences[0].sampled.token);
  }
  EXPECT_EQ(resumed, answer);
}

TEST_P(RankTest, HonoursWhatARequestAsksOfSampling) {
  Load(TinyModel("v3"));
  const std::vector<int32_t> prompt = SomeTokens(1, 20);
  SequenceSetup greedy;
  greedy.sampling.temperature = 0.0f;
  const std::vector<int32_t> likeliest = Answer(prompt, 8, greedy);

  SequenceSetup setup;
  setup.sampling.top_k = 1;
  EXPECT_EQ(Answer(prompt, 8, setup), likeliest);
  setup.sampling = {.top_p = 1e-6f};
  EXPECT_EQ(Answer(prompt, 8, setup), likeliest);
  setup.sampling = {.min_p = 1.0f};
  EXPECT_EQ(Answer(prompt, 8, setup), likeliest);
  setup.sampling = {.logit_bias = {{77, 1000.0f}}};
  EXPECT_THAT(Answer(prompt, 8, setup), ::testing::Each(77));
  // The bias wants 77 again and again; the penalty lets it come once.
  setup.sampling = {.temperature = 0.0f, .presence_penalty = 2000.0f, .logit_bias = {{77, 1000.0f}}};
  std::vector<int32_t> answer = Answer(prompt, 8, setup);
  EXPECT_EQ(answer[0], 77);
  EXPECT_EQ(std::set<int32_t>(answer.begin(), answer.end()).size(), 8u) << "a token came twice";
  // Over the prompt, too.
  setup.sampling = {.temperature = 0.0f, .repetition_penalty = 1e6f};
  answer = Answer(prompt, 8, setup);
  for (const int32_t token : answer) EXPECT_EQ(std::count(prompt.begin(), prompt.end(), token), 0) << token;
}

TEST_P(RankTest, CountsTheRowsOfEachExpert) {
  Load(TinyModel("v3"));
  const StepResult result = Run({Prompt(0, SomeTokens(1, 20), {0}), Prompt(1, SomeTokens(2, 5), {1})});
  ASSERT_THAT(result.expert_loads, SizeIs(2 * 16));  // two MoE layers
  for (int layer = 0; layer < 2; ++layer) {
    int64_t num_rows = 0;
    for (int expert = 0; expert < 16; ++expert) num_rows += result.expert_loads[layer * 16 + expert];
    EXPECT_EQ(num_rows, 25 * 4);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, RankTest, ::testing::ValuesIn(Backends()), NameOf);

// ---- loading ----

absl::Status LoadStatus(const Checkpoint& checkpoint, const RankOptions& options) {
  const auto backend = *NewBackend({.name = "reference"});
  return Rank::Load(checkpoint, options, backend.get(), nullptr, nullptr).status();
}

// What Load says about a v3 checkpoint after `change`.
template <typename Change>
std::string LoadError(nlohmann::json config, Change change) {
  CheckpointWriter writer(std::move(config));
  change(writer);
  const TestDirectory directory;
  writer.Write(directory.path());
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory.path());
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return std::string(LoadStatus(**checkpoint, kSmall).message());
}

void PutFloat(WrittenTensor& tensor, int index, float value) {
  if (tensor.dtype == "F32") {
    tensor.bytes.replace(index * 4, 4, reinterpret_cast<const char*>(&value), 4);
  } else {
    tensor.bytes.replace(index * 2, 2, reinterpret_cast<const char*>(&value) + 2, 2);  // BF16
  }
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(RankLoad, NamesTheTensorThatIsNotFinite) {
  EXPECT_THAT(
      LoadError(TinyV3Config(),
                [](CheckpointWriter& w) { PutFloat(w.Find("model.layers.1.input_layernorm.weight"), 5, kNan); }),
      ::testing::AllOf(HasSubstr("model.safetensors"), HasSubstr("model.layers.1.input_layernorm.weight"),
                       HasSubstr("element 5")));
  EXPECT_THAT(LoadError(TinyV3Config(),
                        [](CheckpointWriter& w) { PutFloat(w.Find("model.layers.2.mlp.gate.weight"), 0, kNan); }),
              HasSubstr("model.layers.2.mlp.gate.weight"));
  EXPECT_THAT(LoadError(TinyV3Fp8Config(),
                        [](CheckpointWriter& w) {
                          PutFloat(w.Find("model.layers.1.mlp.experts.3.up_proj.weight_scale_inv"), 1, kNan);
                        }),
              HasSubstr("model.layers.1.mlp.experts.3.up_proj.weight"));
}

TEST(RankLoad, RefusesWhatDoesNotFitWithTheSums) {
  RankOptions options = kSmall;
  options.num_blocks = int64_t{1} << 31;
  const absl::Status status = LoadStatus(TinyModel("v3"), options);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              ::testing::AllOf(HasSubstr("rank 0 does not fit"), HasSubstr("cache 39582.42 GB"), HasSubstr("available"),
                               HasSubstr("would fit")));
  options.allows_overcommit = true;
  EXPECT_THAT(std::string(LoadStatus(TinyModel("v3"), options).message()), HasSubstr("cannot allocate"));
}

TEST(MemoryEstimateTest, SaysHowManyBlocksFit) {
  MemoryEstimate memory = {
      .weights_bytes = 100, .cache_bytes = 80, .workspace_bytes = 20, .available_bytes = 199};  // 8 bytes a block
  EXPECT_FALSE(memory.Fits());
  EXPECT_EQ(memory.MaxNumBlocks(10), 9);
  memory.available_bytes = 200;
  EXPECT_TRUE(memory.Fits());
  memory.available_bytes = 119;
  EXPECT_LE(memory.MaxNumBlocks(10), 0);
}

TEST(RankLoad, RefusesOptionsThatMakeNoSense) {
  const auto error = [](auto change) {
    RankOptions options = kSmall;
    change(options);
    return std::string(LoadStatus(TinyModel("v3"), options).message());
  };
  EXPECT_THAT(error([](RankOptions& o) { o.num_blocks = 0; }), HasSubstr("num_blocks is 0"));
  EXPECT_THAT(error([](RankOptions& o) { o.block_size = 0; }), HasSubstr("block_size is 0"));
  EXPECT_THAT(error([](RankOptions& o) { o.max_num_seqs = -1; }), HasSubstr("max_num_seqs is -1"));
  EXPECT_THAT(error([](RankOptions& o) { o.max_num_batched_tokens = 0; }), HasSubstr("max_num_batched_tokens is 0"));
  EXPECT_THAT(error([](RankOptions& o) { o.max_model_len = 1281; }), HasSubstr("allowed: 1 to 1280"));
  EXPECT_THAT(error([](RankOptions& o) { o.layout.tp = 3; }), HasSubstr("tp"));
}

TEST(RankLoad, ReportsProgressUpToTheEnd) {
  std::vector<std::pair<int64_t, int64_t>> reports;
  const auto backend = *NewBackend({.name = "reference"});
  ASSERT_TRUE(Rank::Load(TinyModel("v3_fp8"), kSmall, backend.get(), nullptr, [&](int64_t done, int64_t total) {
                reports.emplace_back(done, total);
              }).ok());
  ASSERT_GT(reports.size(), 50u);
  EXPECT_TRUE(std::is_sorted(reports.begin(), reports.end()));
  EXPECT_EQ(reports.back().first, reports.back().second);
}

TEST(MemoryEstimate, AddsUpCacheAndWeights) {
  const MemoryEstimate one = EstimateMemory(TinyModel("v3"), kSmall);
  EXPECT_EQ(one.cache_bytes, 32 * 64 * 3 * (32 + 16) * 2);
  const int64_t stored_bytes = RankBytes(TinyModel("v3"), {}, ExpertMap::Contiguous(16, 1)).total();
  EXPECT_GT(one.weights_bytes, stored_bytes);
  EXPECT_LT(one.weights_bytes, stored_bytes * 5 / 4);
  RankOptions options = kSmall;
  options.weight_dtype = WeightDType::kFloat32;
  const MemoryEstimate wide = EstimateMemory(TinyModel("v3"), options);
  EXPECT_EQ(wide.cache_bytes, 2 * one.cache_bytes) << "F32 weights come with an F32 cache";
  EXPECT_GT(wide.weights_bytes, one.weights_bytes * 3 / 2);
  options = kSmall;
  options.layout = {.tp = 2, .dp = 1, .rank = 1};
  EXPECT_LT(EstimateMemory(TinyModel("v3"), options).weights_bytes, one.weights_bytes * 2 / 3);
  EXPECT_GT(one.available_bytes, 0);
}

}  // namespace
}  // namespace weir::worker
