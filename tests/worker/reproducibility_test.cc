#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "tests/worker/step_runner.h"
#include "tests/worker/tiny_models.h"
#include "worker/backend_choice.h"

// A row's result does not depend on what else is in the batch, on chunking, on preemption, on cache hits or on threads:
// every logit that is reported has the same bits, on every backend and instruction set this machine has.

namespace weir::worker {
namespace {

constexpr int32_t kPromptTokens = 75;  // across a block's edge
constexpr size_t kGeneratedTokens = 8;
constexpr int32_t kMaxOthers = 32;

struct Case {
  std::string model;
  BackendChoice backend;

  std::string Name() const {
    std::string name = model + "_" + backend.name;
    if (!backend.isa.empty()) name += "_" + backend.isa;
    std::replace(name.begin(), name.end(), '-', '_');
    return name;
  }
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.Name(); }

std::vector<BackendChoice> CpuBackends() {
  std::vector<BackendChoice> backends;
  for (const char* isa : {"avx2", "avx512", "avx512-bf16", "neon"}) {
    const BackendChoice choice = {.name = "cpu", .isa = isa, .num_threads = 2};
    if (NewBackend(choice).ok()) backends.push_back(choice);
  }
  return backends;
}

std::vector<Case> Cases(const std::vector<BackendChoice>& backends) {
  std::vector<Case> cases;
  for (const BackendChoice& backend : backends) {
    for (const char* model : {"v3", "v3_f32", "v3_fp8", "v2", "v2_lite"}) cases.push_back({model, backend});
  }
  return cases;
}

class ReproducibilityTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override { Start(GetParam().backend); }

  void Start(const BackendChoice& choice) {
    rank_.reset();
    absl::StatusOr<std::unique_ptr<kernels::Backend>> backend = NewBackend(choice);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    const RankOptions options = {
        .num_blocks = 128, .max_num_seqs = 64, .max_num_batched_tokens = 512, .max_model_len = 256};
    absl::StatusOr<std::unique_ptr<Rank>> rank =
        Rank::Load(TinyModel(GetParam().model), options, backend_.get(), nullptr, nullptr);
    ASSERT_TRUE(rank.ok()) << rank.status();
    rank_ = *std::move(rank);
    runner_ = std::make_unique<StepRunner>(rank_.get());
  }

  static TestSequence Target() { return {.prompt = SomeTokens(1, kPromptTokens), .blocks = {5, 2}, .slot = 7}; }

  // The target alone, its prompt in one piece.
  TestSequence Alone() {
    TestSequence target = Target();
    runner_->RunAlone(target, kGeneratedTokens, kPromptTokens);
    runner_->Release(target);
    EXPECT_EQ(target.distributions.size(), kPromptTokens + kGeneratedTokens - 1);
    return target;
  }

  void ExpectSame(const TestSequence& expected, const TestSequence& found, const std::string& how) {
    EXPECT_EQ(Difference(expected.distributions, found.distributions), "") << how;
    EXPECT_EQ(expected.generated, found.generated) << how;
  }

  void RunAmongOthers(TestSequence& target, int32_t num_others, int32_t chunk);

  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Rank> rank_;
  std::unique_ptr<StepRunner> runner_;
};

// Others of all lengths, each at its own pace, before and behind the target in the batch.
void ReproducibilityTest::RunAmongOthers(TestSequence& target, int32_t num_others, int32_t chunk) {
  std::vector<TestSequence> others;
  for (int32_t i = 0; i < num_others; ++i) {
    others.push_back({.prompt = SomeTokens(100 + i, 1 + i * 29 % 70),
                      .blocks = {20 + 3 * i, 21 + 3 * i, 22 + 3 * i},
                      .slot = 8 + i});
  }
  const auto share = [](TestSequence& sequence, int32_t most) {
    return TestWork{&sequence, std::min(most, sequence.num_known() - sequence.num_computed)};
  };
  while (target.generated.size() < kGeneratedTokens) {
    std::vector<TestWork> work;
    for (int32_t i = 0; i < num_others; ++i) {
      if (i == num_others / 2) work.push_back(share(target, chunk));
      work.push_back(share(others[i], 1 + i * 7 % 11));
    }
    runner_->Run(work);
  }
  runner_->Release(target);
  for (const TestSequence& other : others) runner_->Release(other);
}

TEST_P(ReproducibilityTest, ForEveryChunkSize) {
  const TestSequence alone = Alone();
  for (const int32_t chunk : {1, 7, 64}) {
    TestSequence target = Target();
    runner_->RunAlone(target, kGeneratedTokens, chunk);
    runner_->Release(target);
    ExpectSame(alone, target, "chunks of " + std::to_string(chunk));
  }
}

TEST_P(ReproducibilityTest, ForEveryBatchSize) {
  const TestSequence alone = Alone();
  std::vector<int32_t> sizes(kMaxOthers);
  std::iota(sizes.begin(), sizes.end(), 1);
  // Plain loops quantise slowly.
  if (GetParam().Name() == "v3_fp8_reference") sizes = {1, 6, 32};
  for (const int32_t num_others : sizes) {
    TestSequence target = Target();
    const int32_t chunk = num_others % 3 == 0 ? 7 : num_others % 3 == 1 ? kPromptTokens : 64;
    RunAmongOthers(target, num_others, chunk);
    ExpectSame(alone, target, std::to_string(num_others) + " others, chunks of " + std::to_string(chunk));
  }
}

TEST_P(ReproducibilityTest, BehindACachedPrefix) {
  const TestSequence alone = Alone();
  // Another sequence with the same first 64 tokens fills block 40.
  TestSequence first = {.prompt = SomeTokens(1, 70), .blocks = {40, 41}, .slot = 1};
  runner_->RunAlone(first, 1, 33);
  for (const int32_t chunk : {3, kPromptTokens}) {
    TestSequence target = {.prompt = SomeTokens(1, kPromptTokens), .blocks = {40, 3}, .slot = 7, .num_computed = 64};
    runner_->RunAlone(target, kGeneratedTokens, chunk);
    runner_->Release(target);
    EXPECT_EQ(target.distributions.size(), kPromptTokens - 64 + kGeneratedTokens - 1);
    ExpectSame(alone, target, "chunks of " + std::to_string(chunk));
  }
}

TEST_P(ReproducibilityTest, RecomputedAfterAPreemption) {
  const TestSequence alone = Alone();
  for (const int32_t chunk : {1, 7, 64, 100}) {
    TestSequence target = Target();
    runner_->RunAlone(target, kGeneratedTokens / 2, kPromptTokens);
    runner_->Release(target);
    target.Restart(9, {60, 33});
    runner_->RunAlone(target, kGeneratedTokens, chunk);
    runner_->Release(target);
    EXPECT_EQ(target.distributions.size(), kPromptTokens + kGeneratedTokens - 1);
    ExpectSame(alone, target, "recomputed in chunks of " + std::to_string(chunk));
  }
}

class ReproducibilityOfThreadsTest : public ReproducibilityTest {};

TEST_P(ReproducibilityOfThreadsTest, ForEveryNumberOfThreads) {
  const TestSequence alone = Alone();
  for (const int32_t num_threads : {1, 3}) {
    BackendChoice choice = GetParam().backend;
    choice.num_threads = num_threads;
    ASSERT_NO_FATAL_FAILURE(Start(choice));
    const TestSequence again = Alone();
    ExpectSame(alone, again, std::to_string(num_threads) + " threads");
    TestSequence target = Target();
    RunAmongOthers(target, 9, 7);
    ExpectSame(alone, target, std::to_string(num_threads) + " threads, among others");
  }
}

std::string NameOf(const ::testing::TestParamInfo<Case>& test) { return test.param.Name(); }

INSTANTIATE_TEST_SUITE_P(Reference, ReproducibilityTest, ::testing::ValuesIn(Cases({{.name = "reference"}})), NameOf);
INSTANTIATE_TEST_SUITE_P(Cpu, ReproducibilityTest, ::testing::ValuesIn(Cases(CpuBackends())), NameOf);
INSTANTIATE_TEST_SUITE_P(Cpu, ReproducibilityOfThreadsTest, ::testing::ValuesIn(Cases(CpuBackends())), NameOf);

}  // namespace
}  // namespace weir::worker
