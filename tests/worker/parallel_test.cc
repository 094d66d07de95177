#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "tests/worker/step_runner.h"
#include "tests/worker/tiny_models.h"
#include "tools/weir/generation.h"
#include "tools/weir/rank_group.h"
#include "worker/communicator/communicator.h"

// Several ranks, as threads, give the answers of one.

namespace weir::worker {
namespace {

using tools::Answer;
using tools::Generation;
using tools::RankGroup;
using tools::RankGroupOptions;

constexpr int32_t kMaxTokens = 6;

std::vector<std::vector<int32_t>> Prompts() {
  std::vector<std::vector<int32_t>> prompts;
  for (const int32_t length : {70, 1, 5, 33, 12, 2}) prompts.push_back(SomeTokens(200 + length, length));
  return prompts;
}

std::vector<Answer> Generate(const Checkpoint& checkpoint, RankGroupOptions options,
                             const std::vector<std::vector<int32_t>>& prompts) {
  std::vector<tools::GenerationRequest> requests;
  for (const std::vector<int32_t>& prompt : prompts) {
    requests.push_back({.prompt_ids = prompt, .max_tokens = kMaxTokens});
    requests.back().sampling = {.temperature = 0.0f, .num_top_logprobs = 20, .wants_logprob = true};
  }
  Generation generation(requests, {.dp = options.dp, .max_num_batched_tokens = 48, .reports_prompts = true});
  options.rank.num_blocks = generation.num_blocks();
  options.rank.max_num_seqs = generation.max_num_seqs();
  options.rank.max_num_batched_tokens = 48;
  options.rank.max_model_len = 128;
  options.collective_deadline = std::chrono::milliseconds(60'000);
  absl::StatusOr<std::unique_ptr<RankGroup>> ranks = tools::NewThreadRanks(checkpoint, options, nullptr);
  EXPECT_TRUE(ranks.ok()) << ranks.status();
  while (ranks.ok() && !generation.done()) {
    absl::StatusOr<StepResult> result = (*ranks)->Run(generation.Next());
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) break;
    generation.Take(*result);
  }
  return generation.answers();
}

// All distributions of an answer, prompt first.
std::vector<const kernels::SampleOutput*> Positions(const Answer& answer) {
  std::vector<const kernels::SampleOutput*> positions;
  for (const kernels::SampleOutput& output : answer.prompt_logprobs) positions.push_back(&output);
  for (const kernels::SampleOutput& output : answer.logprobs) positions.push_back(&output);
  return positions;
}

// The largest difference between log-probabilities of tokens that both list.
double LargestDifference(const std::vector<Answer>& a, const std::vector<Answer>& b) {
  double largest = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    const auto left = Positions(a[i]), right = Positions(b[i]);
    EXPECT_EQ(left.size(), right.size());
    for (size_t p = 0; p < std::min(left.size(), right.size()); ++p) {
      const std::map<int32_t, float> expected(left[p]->top_logprobs.begin(), left[p]->top_logprobs.end());
      EXPECT_EQ(expected.size(), 20u);
      for (const auto& [token, logprob] : right[p]->top_logprobs) {
        const auto found = expected.find(token);
        if (found != expected.end()) largest = std::max(largest, std::abs(double{found->second} - logprob));
      }
    }
  }
  return largest;
}

void ExpectSameTokens(const std::vector<Answer>& expected, const std::vector<Answer>& found) {
  ASSERT_EQ(expected.size(), found.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(found[i].error, "");
    EXPECT_EQ(found[i].token_ids, expected[i].token_ids) << "prompt " << i;
    EXPECT_EQ(found[i].token_ids.size(), size_t{kMaxTokens});
  }
}

struct Layout {
  std::string model;
  int32_t tp, dp;
  std::string backend = "reference";
};
std::string NameOf(const Layout& l) {
  return l.model + "_tp" + std::to_string(l.tp) + "_dp" + std::to_string(l.dp) + "_" + l.backend;
}
void PrintTo(const Layout& l, std::ostream* out) { *out << NameOf(l); }

class ParallelTest : public ::testing::TestWithParam<Layout> {
 protected:
  RankGroupOptions Options() const {
    RankGroupOptions options = {
        .tp = GetParam().tp, .dp = GetParam().dp, .backend = {.name = GetParam().backend, .num_threads = 1}};
    options.rank.weight_dtype = WeightDType::kFloat32;
    return options;
  }
  RankGroupOptions OneRank() const {
    RankGroupOptions options = Options();
    options.tp = options.dp = 1;
    return options;
  }
};

// In exact arithmetic ranks differ by the order of additions only: FP8 shards that begin inside a block, uneven experts
// and all.
TEST_P(ParallelTest, AnswersLikeOneRank) {
  const Checkpoint& checkpoint = TinyModel(GetParam().model);
  const std::vector<Answer> expected = Generate(checkpoint, OneRank(), Prompts());
  const std::vector<Answer> found = Generate(checkpoint, Options(), Prompts());
  ExpectSameTokens(expected, found);
  EXPECT_LT(LargestDifference(expected, found), 2e-5);
  RecordProperty("largest_difference", std::to_string(LargestDifference(expected, found)));
}

// With more groups than prompts some ranks never have a row, and serve their experts all the same.
TEST_P(ParallelTest, AnswersOnePromptAlone) {
  const Checkpoint& checkpoint = TinyModel(GetParam().model);
  const std::vector<std::vector<int32_t>> prompts = {Prompts()[2]};
  const std::vector<Answer> expected = Generate(checkpoint, OneRank(), prompts);
  const std::vector<Answer> found = Generate(checkpoint, Options(), prompts);
  ExpectSameTokens(expected, found);
  EXPECT_LT(LargestDifference(expected, found), 2e-5);
}

// Within one layout a prompt's results have the same bits alone, among others, and in whatever group it runs.
TEST_P(ParallelTest, ReproducesToTheLastBit) {
  const Checkpoint& checkpoint = TinyModel(GetParam().model);
  RankGroupOptions options = Options();
  options.rank.weight_dtype = WeightDType::kAuto;
  const std::vector<Answer> together = Generate(checkpoint, options, Prompts());
  for (size_t i = 0; i < Prompts().size(); ++i) {
    const std::vector<Answer> alone = Generate(checkpoint, options, {Prompts()[i]});
    const auto expected = Positions(alone[0]), found = Positions(together[i]);
    ASSERT_EQ(expected.size(), found.size());
    for (size_t p = 0; p < expected.size(); ++p) {
      ASSERT_EQ(expected[p]->top_logprobs, found[p]->top_logprobs) << "prompt " << i << ", position " << p;
    }
  }
}

std::vector<Layout> Layouts() {
  std::vector<Layout> layouts;
  for (const char* model : {"v3", "v2_lite"}) {
    for (const auto& [tp, dp] : {std::pair(2, 1), {4, 1}, {1, 2}, {2, 2}, {1, 3}, {2, 3}})
      layouts.push_back({model, tp, dp});
  }
  layouts.push_back({"v3_fp8", 2, 1});
  layouts.push_back({"v3_fp8", 4, 1});
  layouts.push_back({"v3_fp8", 2, 2});
  layouts.push_back({"v3_fp8", 4, 3});  // 12 ranks for 8 experts: some hold none
  for (const char* model : {"v3", "v3_fp8", "v2"}) {
    layouts.push_back({model, 2, 1, "cpu"});
    layouts.push_back({model, 2, 2, "cpu"});
  }
  return layouts;
}
INSTANTIATE_TEST_SUITE_P(Layouts, ParallelTest, ::testing::ValuesIn(Layouts()),
                         [](const auto& test) { return NameOf(test.param); });

// ---- copies of experts ----

TEST(ExpertCopies, GiveTheSameAnswers) {
  const Checkpoint& checkpoint = TinyModel("v3");
  RankGroupOptions options = {.backend = {.name = "reference"}};
  options.rank.weight_dtype = WeightDType::kFloat32;
  const std::vector<Answer> expected = Generate(checkpoint, options, Prompts());
  for (const auto& [tp, dp] : {std::pair(2, 1), {1, 2}, {2, 2}, {1, 3}}) {
    options.tp = tp;
    options.dp = dp;
    const int32_t world_size = tp * dp;
    // Expert 0 everywhere, every third one twice, the rest backwards: nothing is where it would be by default.
    std::vector<std::vector<int32_t>> ranks_of_expert(checkpoint.config().n_routed_experts);
    for (int32_t e = 0; e < checkpoint.config().n_routed_experts; ++e) {
      ranks_of_expert[e] = {(world_size * 16 - e) % world_size};
      if (e % 3 == 0) ranks_of_expert[e].push_back((ranks_of_expert[e][0] + 1) % world_size);
      for (int32_t r = 0; e == 0 && r < world_size; ++r) {
        if (std::count(ranks_of_expert[e].begin(), ranks_of_expert[e].end(), r) == 0) ranks_of_expert[e].push_back(r);
      }
    }
    options.rank.expert_map = *ExpertMap::FromCopies(ranks_of_expert, world_size);
    const std::vector<Answer> found = Generate(checkpoint, options, Prompts());
    ExpectSameTokens(expected, found);
    EXPECT_LT(LargestDifference(expected, found), 2e-5) << "tp " << tp << " dp " << dp;
  }
}

TEST(ExpertCopies, AreRefusedWhenTheyAreOfAnotherModel) {
  RankGroupOptions options = {.backend = {.name = "reference"}};
  options.rank.num_blocks = 1;
  options.rank.expert_map = ExpertMap::Contiguous(4, 1);
  const auto ranks = tools::NewThreadRanks(TinyModel("v3"), options, nullptr);
  EXPECT_THAT(std::string(ranks.status().message()), ::testing::HasSubstr("the expert map has 4 experts"));
}

// ---- epochs ----

class EpochTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (int r = 0; r < 2; ++r) backends_.push_back(*NewBackend({.name = "reference"}));
    ranks_.resize(2);
    OnBoth([&](int r) {
      const RankOptions options = {
          .layout = {.tp = 2, .dp = 1, .rank = r}, .num_blocks = 4, .max_num_seqs = 2, .max_num_batched_tokens = 64};
      // The group is formed later.
      ranks_[r] = *Rank::Load(TinyModel("v3"), options, backends_[r].get(), nullptr, nullptr);
      return absl::OkStatus();
    });
  }

  void OnBoth(const std::function<absl::Status(int)>& work) {
    std::thread other([&] { statuses_[1] = work(1); });
    statuses_[0] = work(0);
    other.join();
  }
  void Form(uint64_t epoch) {
    groups_.push_back(NewThreadGroup(2, std::chrono::milliseconds(5000)));
    OnBoth([&](int r) { return ranks_[r]->Reform(groups_.back()[r].get(), epoch); });
  }
  static StepPlan Plan(uint64_t epoch) {
    SequenceWork work = {.has_setup = true, .num_tokens = 3, .new_block_ids = {0}, .samples = true};
    work.setup = {.num_prompt_tokens = 3, .token_ids = {1, 2, 3}};
    work.setup.sampling.temperature = 0.0f;
    return {.step_id = 1, .epoch = epoch, .work = {work}};
  }
  absl::Status Run(int r, const StepPlan& plan) {
    absl::StatusOr<StepResult> result = ranks_[r]->Run(plan);
    if (!result.ok()) return result.status();
    results_[r] = *std::move(result);
    return absl::OkStatus();
  }

  std::vector<std::unique_ptr<kernels::Backend>> backends_;
  std::vector<std::vector<std::unique_ptr<Communicator>>> groups_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  absl::Status statuses_[2];
  StepResult results_[2];
};

TEST_F(EpochTest, ABrokenGroupIsFormedAnewWithTheWeightsAtHand) {
  EXPECT_EQ(Run(0, Plan(0)).code(), absl::StatusCode::kFailedPrecondition) << "no group yet";

  Form(7);
  OnBoth([&](int r) { return Run(r, Plan(7)); });
  ASSERT_TRUE(statuses_[0].ok() && statuses_[1].ok()) << statuses_[0] << statuses_[1];
  const int32_t token = results_[0].sequences[0].sampled.token;
  EXPECT_TRUE(results_[1].sequences.empty()) << "only the first rank of a group reports";
  EXPECT_EQ(results_[0].plan_hash, results_[1].plan_hash);

  // Rank 1 never comes; rank 0's wait is aborted.
  std::thread abort([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    groups_.back()[0]->Abort("rank 1 was killed");
  });
  const absl::Status aborted = Run(0, Plan(7));
  abort.join();
  EXPECT_THAT(std::string(aborted.message()), ::testing::HasSubstr("rank 1 was killed"));
  EXPECT_EQ(Run(0, Plan(7)), aborted) << "the epoch is over until the group is formed anew";

  Form(8);
  EXPECT_EQ(Run(0, Plan(7)).code(), absl::StatusCode::kInvalidArgument) << "a plan of the old epoch";
  StepPlan old_slot = {.epoch = 8, .work = {{.first_position = 3, .num_tokens = 1, .token_ids = {5}}}};
  OnBoth([&](int r) { return Run(r, old_slot); });
  EXPECT_THAT(results_[0].sequences[0].error, ::testing::HasSubstr("holds no sequence")) << "slots are forgotten";
  OnBoth([&](int r) { return Run(r, Plan(8)); });
  ASSERT_TRUE(statuses_[0].ok() && statuses_[1].ok()) << statuses_[0] << statuses_[1];
  EXPECT_EQ(results_[0].sequences[0].sampled.token, token);
}

}  // namespace
}  // namespace weir::worker
