#include "kernels/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/noise.h"

namespace weir::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr size_t kVocabSize = 129280;

// ---- the exact distribution, by sorting everything ----

struct Kept {
  int32_t token = 0;
  double probability = 0.0;
};

std::vector<float> Penalized(std::vector<float> logits, const SampleRow& row) {
  const SamplingParams& p = *row.params;
  for (const TokenCount& count : row.history) {
    float& x = logits[count.token];
    x = x > 0 ? x / p.repetition_penalty : x * p.repetition_penalty;
    if (count.num_in_output > 0)
      x -= p.presence_penalty + p.frequency_penalty * static_cast<float>(count.num_in_output);
  }
  for (const auto& [token, bias] : p.logit_bias) logits[token] += bias;
  for (size_t i = 0; i < logits.size() && !row.allowed_tokens.empty(); ++i) {
    if ((row.allowed_tokens[i / 32] >> (i % 32) & 1u) == 0) logits[i] = -kInfinity;
  }
  return logits;
}

void Normalize(std::vector<Kept>& kept) {
  double sum = 0.0;
  for (const Kept& k : kept) sum += k.probability;
  for (Kept& k : kept) k.probability /= sum;
}

// In descending probability.
std::vector<Kept> ExactDistribution(const std::vector<float>& logits, const SampleRow& row) {
  const std::vector<float> x = Penalized(logits, row);
  std::vector<int32_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
  std::vector<Kept> kept;
  kept.reserve(order.size());
  const double max = x[order[0]];
  for (const int32_t token : order) kept.push_back({token, std::exp((x[token] - max) / row.params->temperature)});
  if (row.params->top_k > 0) kept.resize(std::min(kept.size(), static_cast<size_t>(row.params->top_k)));
  Normalize(kept);
  size_t count = 0;
  for (double mass = 0.0; count < kept.size() && (count == 0 || mass < row.params->top_p); ++count) {
    mass += kept[count].probability;
  }
  kept.resize(count);
  const double floor = row.params->min_p * kept[0].probability;
  while (kept.back().probability < floor * (1 - 1e-6)) kept.pop_back();
  Normalize(kept);
  return kept;
}

int32_t Draw(const std::vector<float>& logits, SampleRow row, uint64_t key, int64_t position) {
  row.noise_key = key;
  row.position = position;
  SampleOutput output;
  SampleFromLogits(logits, row, output);
  EXPECT_TRUE(output.is_finite);
  return output.token;
}

std::vector<float> RandomLogits(size_t size, float spread, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(size);
  for (float& x : logits) x = normal(engine);
  return logits;
}

// The value that a chi-square variable with `degrees` of freedom exceeds once in 10,000 times (Wilson and Hilferty).
double ChiSquareLimit(double degrees) {
  const double a = 2.0 / (9.0 * degrees);
  return degrees * std::pow(1.0 - a + 3.719 * std::sqrt(a), 3);
}

struct Scenario {
  std::string name;
  SamplingParams params;
  std::vector<TokenCount> history;
  std::vector<uint32_t> allowed;
};

std::vector<Scenario> Scenarios() {
  std::vector<Scenario> all;
  auto add = [&](std::string name, auto change) -> Scenario& {
    Scenario scenario{std::move(name)};
    change(scenario.params);
    return all.emplace_back(std::move(scenario));
  };
  add("Plain", [](SamplingParams&) {});
  add("Cold", [](SamplingParams& p) { p.temperature = 0.5f; });
  add("Hot", [](SamplingParams& p) { p.temperature = 3.0f; });
  add("TopK", [](SamplingParams& p) { p.top_k = 7; });
  add("TopP", [](SamplingParams& p) { p.top_p = 0.8f; });
  add("MinP", [](SamplingParams& p) { p.min_p = 0.1f; });
  add("AllCuts", [](SamplingParams& p) {
    p.temperature = 1.3f;
    p.top_k = 15;
    p.top_p = 0.9f;
    p.min_p = 0.05f;
  });
  add("Bias", [](SamplingParams& p) { p.logit_bias = {{3, 2.0f}, {5, -100.0f}, {3, 0.5f}}; });
  add("Penalties", [](SamplingParams& p) {
    p.repetition_penalty = 1.5f;
    p.presence_penalty = 0.4f;
    p.frequency_penalty = 0.3f;
  }).history = {{0, 1, 0}, {2, 0, 3}, {9, 2, 1}, {20, 0, 1}};
  add("Mask", [](SamplingParams&) {}).allowed = {0x55aa33ccu, 0x7u};
  return all;
}

SampleRow RowOf(const Scenario& scenario) {
  SampleRow row;
  row.params = &scenario.params;
  row.history = scenario.history;
  row.allowed_tokens = scenario.allowed;
  return row;
}

class EveryScenario : public testing::TestWithParam<Scenario> {};
INSTANTIATE_TEST_SUITE_P(All, EveryScenario, testing::ValuesIn(Scenarios()),
                         [](const auto& param) { return param.param.name; });

TEST_P(EveryScenario, DrawsFromTheExactDistribution) {
  const std::vector<float> logits = RandomLogits(35, 1.5f, 1);
  const SampleRow row = RowOf(GetParam());
  const std::vector<Kept> exact = ExactDistribution(logits, row);
  constexpr int kNumDraws = 40000;
  std::vector<int> observed(logits.size());
  for (int i = 0; i < kNumDraws; ++i) ++observed[Draw(logits, row, NoiseKey(11, i / 100), i % 100)];

  double statistic = 0.0, degrees = -1.0, rest_expected = 0.0;
  int rest_observed = 0, num_kept = 0;
  for (const Kept& k : exact) {
    num_kept += observed[k.token];
    if (k.probability * kNumDraws < 5) {  // too rare for the approximation: one cell for all of them
      rest_expected += k.probability * kNumDraws;
      rest_observed += observed[k.token];
      continue;
    }
    const double expected = k.probability * kNumDraws;
    statistic += (observed[k.token] - expected) * (observed[k.token] - expected) / expected;
    ++degrees;
  }
  if (rest_expected > 5) {
    statistic += (rest_observed - rest_expected) * (rest_observed - rest_expected) / rest_expected;
    ++degrees;
  }
  EXPECT_EQ(num_kept, kNumDraws) << "a token was drawn that the cuts had dropped";
  EXPECT_LT(statistic, ChiSquareLimit(degrees)) << degrees << " degrees of freedom";
}

// Inversion: the token is the one in whose interval of the cumulative distribution the noise lies.
TEST_P(EveryScenario, InvertsTheNoiseOverTheRankedTokens) {
  for (const size_t size : {size_t{35}, size_t{64}}) {
    const std::vector<float> logits = RandomLogits(size, 2.0f, 2);
    Scenario scenario = GetParam();
    if (!scenario.allowed.empty()) scenario.allowed.resize((size + 31) / 32);
    const SampleRow row = RowOf(scenario);
    const std::vector<Kept> exact = ExactDistribution(logits, row);
    for (int64_t position = 0; position < 2000; ++position) {
      const double u = UniformNoise(7, position);
      double end = 0.0;
      size_t i = 0;
      while (i + 1 < exact.size() && (end += exact[i].probability) <= u) ++i;
      const int32_t token = Draw(logits, row, 7, position);
      if (std::fabs(end - u) > 1e-6 && std::fabs(end - exact[i].probability - u) > 1e-6) {
        ASSERT_EQ(token, exact[i].token) << position;
      }
    }
  }
}

TEST(SampleFromLogits, InvertsOverAFullVocabularyToo) {
  for (const float spread : {0.01f, 1.0f, 4.0f}) {
    const std::vector<float> logits = RandomLogits(kVocabSize, spread, 3);
    for (const Scenario& scenario : Scenarios()) {
      if (!scenario.allowed.empty()) continue;
      const SampleRow row = RowOf(scenario);
      const std::vector<Kept> exact = ExactDistribution(logits, row);
      for (int64_t position = 0; position < 10; ++position) {
        const double u = UniformNoise(9, position);
        const int32_t token = Draw(logits, row, 9, position);
        double begin = 0.0;
        size_t i = 0;
        for (; i + 1 < exact.size() && exact[i].token != token; ++i) begin += exact[i].probability;
        ASSERT_EQ(exact[i].token, token) << scenario.name;
        EXPECT_GT(u, begin - 2e-6) << scenario.name;
        EXPECT_LT(u, begin + exact[i].probability + 2e-6) << scenario.name;
      }
    }
  }
}

TEST(SampleFromLogits, IsGreedyAtTemperatureZeroAndPrefersTheLowerIdOnATie) {
  SamplingParams params{.temperature = 0.0f};
  SampleRow row{.params = &params};
  EXPECT_EQ(Draw({1.0f, 3.0f, 2.0f, 3.0f}, row, 1, 1), 1);
  EXPECT_EQ(Draw({-5.0f, 0.0f, -0.0f, -1.0f}, row, 1, 1), 1);
  EXPECT_EQ(Draw({-5.0f, -0.0f, 0.0f, -1.0f}, row, 1, 1), 1);
  EXPECT_EQ(Draw({-kInfinity, -1e30f}, row, 1, 1), 1);
  std::vector<float> logits = RandomLogits(kVocabSize, 1.0f, 4);
  logits[77777] = logits[99999] = 50.0f;
  EXPECT_EQ(Draw(logits, row, 1, 1), 77777);
  params = {.temperature = 5.0f, .top_k = 1};
  EXPECT_EQ(Draw(logits, row, 1, 1), 77777);
  params = {.temperature = 5.0f, .top_p = 0.0f};
  EXPECT_EQ(Draw(logits, row, 1, 1), 77777);
  params = {.temperature = 1e-30f};
  logits[99999] = 49.0f;
  EXPECT_EQ(Draw(logits, row, 1, 1), 77777);
}

TEST(SampleFromLogits, KeepsTheLowerIdsOnATieAtACut) {
  SamplingParams params{.top_k = 3};
  const std::vector<float> logits(40, 1.0f);
  for (int64_t position = 0; position < 200; ++position) {
    EXPECT_LT(Draw(logits, {.params = &params}, 5, position), 3);
  }
}

TEST(SampleFromLogits, ReportsRowsThatAreNotFinite) {
  const SamplingParams params{.temperature = 0.0f, .wants_logprob = true};
  const SampleRow row{.params = &params};
  for (const float bad : {std::nanf(""), -std::nanf(""), kInfinity}) {
    for (const size_t place : {size_t{0}, size_t{17}, size_t{98}}) {
      std::vector<float> logits(99, 1.0f);
      logits[place] = bad;
      SampleOutput output;
      SampleFromLogits(logits, row, output);
      EXPECT_FALSE(output.is_finite);
      EXPECT_EQ(output.token, -1);
    }
  }
  const uint32_t nothing_but_the_first[] = {1u, 0u, 0u, 0u};
  std::vector<float> logits(99, 1.0f);
  logits[50] = std::nanf("");  // a mask does not hide it
  SampleRow masked = row;
  masked.allowed_tokens = nothing_but_the_first;
  SampleOutput output;
  SampleFromLogits(logits, masked, output);
  EXPECT_FALSE(output.is_finite);
}

TEST(SampleFromLogits, ChoosesNothingWhenNothingIsAllowed) {
  const SamplingParams params{};
  const uint32_t none[] = {0u};
  SampleOutput output;
  SampleFromLogits(std::vector<float>(20, 1.0f), {.params = &params, .allowed_tokens = none}, output);
  EXPECT_TRUE(output.is_finite);
  EXPECT_EQ(output.token, -1);
  SampleFromLogits(std::vector<float>(20, -kInfinity), {.params = &params}, output);
  EXPECT_TRUE(output.is_finite);
  EXPECT_EQ(output.token, -1);
}

double LogProbability(const std::vector<float>& x, int32_t token) {
  double sum = 0.0;
  for (const float value : x) sum += std::exp(static_cast<double>(value));
  return x[token] - std::log(sum);
}

TEST(SampleFromLogits, ReportsLogProbabilitiesBeforeTemperatureAndCuts) {
  const std::vector<float> logits = RandomLogits(5000, 2.0f, 6);
  SamplingParams params{
      .temperature = 0.3f, .top_k = 2, .logit_bias = {{17, 3.0f}}, .num_top_logprobs = 20, .wants_logprob = true};
  params.frequency_penalty = 0.5f;
  const std::vector<TokenCount> history = {{4, 0, 2}, {9, 1, 0}};
  const SampleRow row{.params = &params, .history = history, .noise_key = 3, .position = 8};
  const std::vector<float> adjusted = Penalized(logits, row);
  SampleOutput output;
  SampleFromLogits(logits, row, output);
  EXPECT_NEAR(output.logprob, LogProbability(adjusted, output.token), 1e-5);
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int32_t a, int32_t b) { return adjusted[a] != adjusted[b] ? adjusted[a] > adjusted[b] : a < b; });
  ASSERT_EQ(output.top_logprobs.size(), 20u);
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(output.top_logprobs[i].first, order[i]);
    EXPECT_NEAR(output.top_logprobs[i].second, LogProbability(adjusted, order[i]), 1e-5);
  }
}

TEST(SampleFromLogits, ListsTiesInAscendingIdAndLeavesMaskedTokensOut) {
  const SamplingParams params{.temperature = 0.0f, .num_top_logprobs = 5};
  SampleOutput output;
  SampleFromLogits(std::vector<float>{2.0f, 1.0f, 2.0f, -kInfinity, 2.0f}, {.params = &params}, output);
  std::vector<int32_t> tokens;
  tokens.reserve(output.top_logprobs.size());
  for (const auto& entry : output.top_logprobs) tokens.push_back(entry.first);
  EXPECT_EQ(tokens, (std::vector<int32_t>{0, 2, 4, 1}));
}

TEST(SampleFromLogits, ReportsAGivenTokenBeforePenalties) {
  const std::vector<float> logits = RandomLogits(100, 2.0f, 7);
  SamplingParams params{.logit_bias = {{5, 50.0f}}, .num_top_logprobs = 3};
  SampleOutput output;
  SampleFromLogits(logits, {.params = &params, .given_token = 5}, output);
  EXPECT_EQ(output.token, 5);
  EXPECT_NEAR(output.logprob, LogProbability(logits, 5), 1e-5);
  EXPECT_EQ(output.top_logprobs.size(), 3u);
  EXPECT_EQ(output.top_logprobs[0].first, std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// ---- noise ----

// The vectors published with Philox (Random123, kat_vectors).
TEST(Philox, GivesThePublishedAnswers) {
  using Block = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  EXPECT_EQ(Philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Block{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  EXPECT_EQ(Philox({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}),
            (Block{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

TEST(UniformNoise, IsUniformOverPositionsRequestsAndSeeds) {
  constexpr int kNumCells = 64, kNumDraws = 64 * 500;
  for (int axis = 0; axis < 3; ++axis) {
    std::vector<int> cells(kNumCells);
    for (int i = 0; i < kNumDraws; ++i) {
      const uint64_t key = NoiseKey(axis == 0 ? i : 1, axis == 1 ? i : 1);
      const double u = UniformNoise(key, axis == 2 ? i : 1);
      ASSERT_GE(u, 0.0);
      ASSERT_LT(u, 1.0);
      ++cells[static_cast<int>(u * kNumCells)];
    }
    double statistic = 0.0;
    for (const int count : cells) statistic += (count - 500.0) * (count - 500.0) / 500.0;
    EXPECT_LT(statistic, ChiSquareLimit(kNumCells - 1)) << "axis " << axis;
  }
}

TEST(UniformNoise, IsUnrelatedBetweenNeighboursOnEveryAxis) {
  constexpr int kNumDraws = 20000;
  for (int axis = 0; axis < 3; ++axis) {
    double sum = 0.0;
    for (int i = 0; i < kNumDraws; ++i) {
      auto noise = [&](uint64_t seed, uint64_t request, int64_t position) {
        return UniformNoise(NoiseKey(seed, request), position) - 0.5;
      };
      sum += noise(i, 3, 5) * noise(i + (axis == 0), 3 + (axis == 1), 5 + (axis == 2));
    }
    const double correlation = sum / kNumDraws * 12.0;
    EXPECT_LT(std::fabs(correlation), 4.0 / std::sqrt(kNumDraws)) << "axis " << axis;
  }
  EXPECT_NE(NoiseKey(1, 2), NoiseKey(2, 1));
}

TEST(SampleFromLogits, DrawsTheSameWhateverWasDrawnBefore) {
  const std::vector<float> logits = RandomLogits(1000, 1.0f, 8);
  const std::vector<float> others = RandomLogits(kVocabSize, 1.0f, 9);
  const SamplingParams params{};
  const SampleRow row{.params = &params};
  const int32_t alone = Draw(logits, row, NoiseKey(1, 2), 33);
  for (int64_t i = 0; i < 20; ++i) {
    Draw(others, row, NoiseKey(5, 6), i);
    EXPECT_EQ(Draw(logits, row, NoiseKey(1, 2), 33), alone);
  }
  std::vector<int32_t> tokens;
  tokens.reserve(50);
  for (int64_t position = 0; position < 50; ++position) tokens.push_back(Draw(logits, row, NoiseKey(1, 2), position));
  EXPECT_GT(std::count_if(tokens.begin(), tokens.end(), [&](int32_t t) { return t != tokens[0]; }), 40);
}

}  // namespace
}  // namespace weir::kernels
