#include <algorithm>
#include <bit>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/check.h"
#include "tests/kernels/attention_steps.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/rig.h"

// A row's bits depend on its own input, its own sequence's cache and the weights, and on nothing else: not on the other
// rows, their number and order, on how a prompt is cut, or on which blocks hold the cache.

namespace weir::kernels {
namespace {

class EveryBackend : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    backend_ = BackendNamed(GetParam()).make();
    if (backend_ == nullptr) GTEST_SKIP() << GetParam() << " does not run on this machine";
  }
  std::unique_ptr<Backend> backend_;
};

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const BackendUnderTest& backend : Backends()) names.push_back(backend.name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(All, EveryBackend, testing::ValuesIn(Names()),
                         [](const auto& param) { return TestName(param.param); });

bool SameBits(std::span<const float> a, std::span<const float> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](float x, float y) { return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y); });
}

// ---- operations on rows ----

constexpr int32_t kNumRows = 37;

// An operation on any choice of kNumRows rows whose inputs are fixed by name.
using RowOperation = std::function<Values(Rig&, std::span<const int32_t> rows)>;

std::vector<int32_t> Range(int32_t first, int32_t count) {
  std::vector<int32_t> rows(static_cast<size_t>(count));
  std::iota(rows.begin(), rows.end(), first);
  return rows;
}

void ExpectRowsAlike(Backend& backend, const std::string& name, const RowOperation& operation) {
  auto run = [&](std::span<const int32_t> rows) {
    Rig rig(backend);
    return operation(rig, rows);
  };
  const Values all = run(Range(0, kNumRows));
  auto expect_alike = [&](std::span<const int32_t> rows, const std::string& where) {
    const Values some = run(rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSERT_TRUE(SameBits(some.row(static_cast<int64_t>(i)), all.row(rows[i])))
          << name << ", row " << rows[i] << where;
    }
  };
  for (const int32_t row : {0, 1, 17, kNumRows - 1}) expect_alike(std::vector<int32_t>{row}, " alone");
  for (const int32_t count : {2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33}) {
    expect_alike(Range(kNumRows - count, count), " among " + std::to_string(count));
  }
  expect_alike(Random(name).Permutation(kNumRows), " in another order");
  expect_alike(std::vector<int32_t>(40, 5), " beside itself");
}

RowOperation LinearOf(const WeightKind& kind, int64_t k, int64_t n) {
  return [=](Rig& rig, std::span<const int32_t> rows) {
    Random random(kind.name);
    const HostWeight weight(random, n, k, kind);
    const Values x = random.NormalValues(kNumRows, k);
    const std::unique_ptr<LinearWeight> packed = rig.Linear(weight);
    const TensorView input = rig.PutActivation(Pick(x, rows));
    const TensorView out = rig.EmptyActivation(input.rows, n);
    rig->Linear(out, input, *packed);
    return rig.Get(out);
  };
}

RowOperation MlpOf(const WeightKind& kind) {
  return [=](Rig& rig, std::span<const int32_t> rows) {
    Random random(kind.name);
    const HostWeight gate(random, 330, 200, kind), up(random, 330, 200, kind), down(random, 200, 330, kind);
    const auto packed = rig->PackMlp({gate.matrix(), up.matrix(), down.matrix()}, kind.format);
    WEIR_CHECK(packed.ok());
    const TensorView input = rig.PutActivation(Pick(random.NormalValues(kNumRows, 200), rows));
    const TensorView out = rig.EmptyActivation(input.rows, 200);
    rig->Mlp(out, input, **packed);
    return rig.Get(out);
  };
}

RowOperation ExpertsOf(const WeightKind& kind) {
  return [=](Rig& rig, std::span<const int32_t> rows) {
    constexpr int32_t kNumExperts = 6, kNumChosen = 3;
    Random random(kind.name);
    std::vector<HostWeight> weights;
    std::vector<HostMlp> experts;
    weights.reserve(3 * kNumExperts);
    for (int32_t e = 0; e < kNumExperts; ++e) {
      const HostMatrix gate = weights.emplace_back(random, 72, 136, kind).matrix();
      const HostMatrix up = weights.emplace_back(random, 72, 136, kind).matrix();
      experts.push_back({gate, up, weights.emplace_back(random, 136, 72, kind).matrix()});
    }
    const auto packed = rig->PackExperts(experts, Range(0, kNumExperts), kind.format);
    WEIR_CHECK(packed.ok());
    Values ids(kNumRows, kNumChosen), shares(kNumRows, kNumChosen);
    for (int64_t r = 0; r < kNumRows; ++r) {
      std::vector<int32_t> chosen = random.Permutation(kNumExperts);
      std::sort(chosen.begin(), chosen.begin() + kNumChosen);
      std::copy_n(chosen.begin(), kNumChosen, ids.row(r).begin());
      for (float& share : shares.row(r)) share = random.Uniform(0.1f, 1.0f);
    }
    const TensorView input = rig.PutActivation(Pick(random.NormalValues(kNumRows, 136), rows));
    const TensorView out = rig.EmptyActivation(input.rows, 136);
    const TensorView device_ids = rig.Put(Pick(ids, rows), DType::kI32);
    const TensorView device_shares = rig.Put(Pick(shares, rows), DType::kF32);
    rig->Experts(out, input, device_ids, device_shares, **packed, nullptr);
    return rig.Get(out);
  };
}

Values NormRows(Rig& rig, std::span<const int32_t> rows) {
  Random random("norm");
  const TensorView x = rig.PutActivation(Pick(random.NormalValues(kNumRows, 301), rows));
  const TensorView weight = rig.Put(random.NormalValues(1, 301), DType::kF32);
  const TensorView out = rig.EmptyActivation(x.rows, 301);
  rig->RmsNorm(out, x, weight, 1e-6f);
  return rig.Get(out);
}

Values RouteRows(Rig& rig, std::span<const int32_t> rows) {
  Random random("route");
  const RouterShape shape{RouterShape::Scoring::kSigmoid, RouterShape::GroupScore::kTopTwoSum, 64, 6, 8, 4, true, 2.5f};
  const TensorView logits = rig.Put(Pick(random.NormalValues(kNumRows, 64), rows), DType::kF32);
  const TensorView bias = rig.Put(random.NormalValues(1, 64), DType::kF32);
  const TensorView ids = rig.Empty(logits.rows, 6, DType::kI32), weights = rig.Empty(logits.rows, 6, DType::kF32);
  rig->Route(ids, weights, logits, bias, shape);
  const Values a = rig.Get(ids), b = rig.Get(weights);
  Values both(a.rows, 12);
  for (int64_t r = 0; r < a.rows; ++r) {
    std::copy_n(a.row(r).begin(), 6, both.row(r).begin());
    std::copy_n(b.row(r).begin(), 6, both.row(r).begin() + 6);
  }
  return both;
}

Values SampledRows(Rig& rig, std::span<const int32_t> rows) {
  Random random("sample");
  const TensorView logits = rig.Put(Pick(random.NormalValues(kNumRows, 777), rows), DType::kF32);
  SamplingParams params;
  params.wants_logprob = true;
  std::vector<SampleRow> requests(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    requests[i].params = &params;
    requests[i].noise_key = NoiseKey(1, static_cast<uint64_t>(rows[i]));
    requests[i].position = 10 + rows[i];
  }
  std::vector<SampleOutput> outputs(rows.size());
  rig->Sample(outputs, logits, requests);
  WEIR_CHECK(rig->Synchronize().ok());
  Values result(static_cast<int64_t>(rows.size()), 2);
  for (size_t i = 0; i < rows.size(); ++i) {
    result.at(static_cast<int64_t>(i), 0) = static_cast<float>(outputs[i].token);
    result.at(static_cast<int64_t>(i), 1) = outputs[i].logprob;
  }
  return result;
}

TEST_P(EveryBackend, ComputesALinearRowAlikeInEveryBatch) {
  for (const WeightKind& kind : kWeightKinds) {
    ExpectRowsAlike(*backend_, std::string("Linear ") + kind.name, LinearOf(kind, 300, 140));
    ExpectRowsAlike(*backend_, std::string("Linear, one output, ") + kind.name, LinearOf(kind, 1000, 1));
  }
  ExpectRowsAlike(*backend_, "Linear, wide", LinearOf(kBF16Weights, 384, 900));
}

TEST_P(EveryBackend, ComputesAnMlpRowAlikeInEveryBatch) {
  for (const WeightKind& kind : kWeightKinds) {
    ExpectRowsAlike(*backend_, std::string("Mlp ") + kind.name, MlpOf(kind));
    ExpectRowsAlike(*backend_, std::string("Experts ") + kind.name, ExpertsOf(kind));
  }
}

TEST_P(EveryBackend, ComputesTheOtherRowsAlikeInEveryBatch) {
  ExpectRowsAlike(*backend_, "RmsNorm", NormRows);
  ExpectRowsAlike(*backend_, "Route", RouteRows);
  ExpectRowsAlike(*backend_, "Sample", SampledRows);
}

// ---- attention ----

constexpr int32_t kNumPrompt = 150, kNumGenerated = 12, kLength = kNumPrompt + kNumGenerated;

MlaShape SmallShape() {
  MlaShape shape{3, 72, 20, 8, 24};
  shape.softmax_scale = 0.19f;
  return shape;
}

// Sequence 0 is the one whose rows are looked at; the others are company.
AttentionSequences SequencesOf(const WeightKind& kind, DType cache) {
  Random random(std::string(kind.name) + std::string(Name(cache)));
  return AttentionSequences(random, SmallShape(), kind, cache, {kLength, 90, 40, 130});
}

SequencePart PartAt(int32_t first, int32_t end) {
  const int32_t num_prompt = std::max(0, std::min(end, kNumPrompt) - first);
  return {0, first, num_prompt, end - first - num_prompt};
}

// The rows of sequence 0, computed in steps of `chunk` positions with `company` around it.
Values InChunks(Backend& backend, const AttentionSequences& sequences, int32_t chunk, bool has_company,
                const std::string& block_order) {
  Values result(kLength, int64_t{sequences.shape.num_heads} * sequences.shape.v_head_dim);
  for (int32_t first = 0; first < kLength; first += chunk) {
    const SequencePart part = PartAt(first, std::min(first + chunk, kLength));
    std::vector<SequencePart> parts = {part};
    if (has_company) parts = {{1, 0, 70, 0}, part, {2, 39, 0, 1}, {3, 64, 60, 3}};
    Rig rig(backend);
    const Values rows = Attend(rig, sequences, parts, block_order + std::to_string(first));
    const int64_t before = has_company ? 70 : 0;
    for (int32_t i = 0; i < part.num_rows(); ++i) {
      std::copy_n(rows.row(before + i).begin(), rows.cols, result.row(first + i).begin());
    }
  }
  return result;
}

void ExpectSameRows(const Values& expected, const Values& found, const std::string& where) {
  for (int32_t p = 0; p < kLength; ++p) {
    ASSERT_TRUE(SameBits(expected.row(p), found.row(p))) << "position " << p << where;
  }
}

TEST_P(EveryBackend, AttendsAlikeHoweverTheSequenceIsCut) {
  const std::pair<WeightKind, DType> settings[] = {{kF32Weights, DType::kF32},
                                                   {kBF16Weights, DType::kBF16},
                                                   {kWeightKinds[3], DType::kBF16},
                                                   {kBF16Weights, DType::kF32}};
  for (const auto& [kind, cache] : settings) {
    const AttentionSequences sequences = SequencesOf(kind, cache);
    const std::string where = std::string(", ") + kind.name + " weights";
    const Values whole = InChunks(*backend_, sequences, kLength, false, "a");
    ExpectSameRows(whole, InChunks(*backend_, sequences, kLength, false, "b"), where + ", in other blocks");
    ExpectSameRows(whole, InChunks(*backend_, sequences, kLength, true, "c"), where + ", in company");
    for (const int32_t chunk : {1, 7, 64}) {
      ExpectSameRows(whole, InChunks(*backend_, sequences, chunk, chunk != 64, "d"),
                     where + ", in chunks of " + std::to_string(chunk));
    }
  }
}

TEST_P(EveryBackend, AttendsAlikeOverALongContextAloneAndInCompany) {
  MlaShape shape{2, 40, 16, 8, 16};
  shape.softmax_scale = 0.2f;
  Random random("long");
  const std::vector<int32_t> lengths = {1500, 1100, 700, 3, 64, 65, 900};
  const AttentionSequences sequences(random, shape, kBF16Weights, DType::kBF16, lengths);
  std::vector<SequencePart> all;
  for (int32_t s = 0; s < static_cast<int32_t>(lengths.size()); ++s) all.push_back({s, lengths[s] - 1, 0, 1});
  Rig rig(*backend_);
  const Values together = Attend(rig, sequences, all, "together");
  for (size_t s = 0; s < lengths.size(); ++s) {
    Rig lonely(*backend_);
    const Values alone = Attend(lonely, sequences, std::span(all).subspan(s, 1), "alone");
    EXPECT_TRUE(SameBits(alone.row(0), together.row(static_cast<int64_t>(s)))) << "sequence " << s;
  }
}

}  // namespace
}  // namespace weir::kernels
