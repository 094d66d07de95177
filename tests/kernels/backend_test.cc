#include "kernels/backend.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/check.h"
#include "kernels/float_formats.h"
#include "tests/kernels/attention_steps.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/rig.h"

// Numbers worked by hand, and identities of the paper, on every backend.

namespace weir::kernels {
namespace {

class EveryBackend : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    backend_ = BackendNamed(GetParam()).make();
    if (backend_ == nullptr) GTEST_SKIP() << GetParam() << " does not run on this machine";
  }
  double Precision(double in_f32) const { return backend_->activation_dtype() == DType::kF32 ? in_f32 : 1e-2; }

  std::unique_ptr<Backend> backend_;
};

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const BackendUnderTest& backend : Backends()) names.push_back(backend.name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(All, EveryBackend, testing::ValuesIn(Names()),
                         [](const auto& param) { return TestName(param.param); });

Values RowOf(const std::vector<float>& values) {
  Values row(1, static_cast<int64_t>(values.size()));
  row.data = values;
  return row;
}

void ExpectNear(std::span<const float> found, const std::vector<double>& expected, double precision) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(found[i], expected[i], precision) << "element " << i;
}

// ---- router ----

struct Routed {
  std::vector<float> ids, weights;
};

Routed RouteOne(Backend& backend, const std::vector<float>& logits, const std::vector<float>& bias,
                const RouterShape& shape) {
  Rig rig(backend);
  const TensorView ids = rig.Empty(1, shape.num_experts_per_tok, DType::kI32);
  const TensorView weights = rig.Empty(1, shape.num_experts_per_tok, DType::kF32);
  const TensorView device_logits = rig.Put(RowOf(logits), DType::kF32);
  const TensorView device_bias = bias.empty() ? TensorView{} : rig.Put(RowOf(bias), DType::kF32);
  rig->Route(ids, weights, device_logits, device_bias, shape);
  return {rig.Get(ids).data, rig.Get(weights).data};
}

using Scoring = RouterShape::Scoring;
using GroupScore = RouterShape::GroupScore;

const std::vector<float> kLogits = {0.2f, -1.0f, 1.5f, 0.1f, -0.4f, 0.9f, 2.0f, -3.0f};
const std::vector<float> kBias = {.05f, .6f, -.5f, .1f, .7f, -.2f, -.6f, .9f};

// Spec 2.7's worked example: the groups 0 and 2 are kept though expert 7 has the largest biased score of the others.
TEST_P(EveryBackend, RoutesAsTheWorkedExample) {
  const RouterShape shape{Scoring::kSigmoid, GroupScore::kTopTwoSum, 8, 3, 4, 2, true, 2.5f};
  const Routed routed = RouteOne(*backend_, kLogits, kBias, shape);
  EXPECT_EQ(routed.ids, (std::vector<float>{0, 1, 4}));
  ExpectNear(routed.weights, {1.126628, 0.551070, 0.822302}, 1e-6);
}

// Without groups the same numbers lead to the experts 4, 7 and 1: s' = 1.101312, 0.947426, 0.868941.
TEST_P(EveryBackend, RoutesByBiasedScoresAndWeighsByUnbiasedOnes) {
  const RouterShape shape{Scoring::kSigmoid, GroupScore::kNone, 8, 3, 1, 1, false, 1.0f};
  const Routed routed = RouteOne(*backend_, kLogits, kBias, shape);
  EXPECT_EQ(routed.ids, (std::vector<float>{1, 4, 7}));
  ExpectNear(routed.weights, {0.268941, 0.401312, 0.047426}, 1e-6);
}

// softmax([0, ln 2, ln 3, ln 4, 0, 0]) = [1, 2, 3, 4, 1, 1] / 12.  Group maxima 2, 4, 1: the groups 0 and 1 stay.
TEST_P(EveryBackend, RoutesV2ByTheLargestOfEachGroup) {
  const std::vector<float> logits = {0.0f, std::log(2.0f), std::log(3.0f), std::log(4.0f), 0.0f, 0.0f};
  RouterShape shape{Scoring::kSoftmax, GroupScore::kMax, 6, 3, 3, 2, false, 16.0f};
  const Routed routed = RouteOne(*backend_, logits, {}, shape);
  EXPECT_EQ(routed.ids, (std::vector<float>{1, 2, 3}));
  ExpectNear(routed.weights, {16 * 2 / 12.0, 16 * 3 / 12.0, 16 * 4 / 12.0}, 1e-5);
  shape.num_groups_kept = 1;
  shape.num_experts_per_tok = 2;
  EXPECT_EQ(RouteOne(*backend_, logits, {}, shape).ids, (std::vector<float>{2, 3}));
}

// With every biased score negative a mask of 0 instead of -inf would let the dropped groups win.
TEST_P(EveryBackend, DropsGroupsEvenWhereEveryScoreIsNegative) {
  const RouterShape shape{Scoring::kSigmoid, GroupScore::kTopTwoSum, 4, 2, 2, 1, false, 1.0f};
  const Routed routed = RouteOne(*backend_, {0.0f, 0.0f, 0.0f, 0.0f}, {-2.0f, -3.0f, -2.5f, -2.4f}, shape);
  EXPECT_EQ(routed.ids, (std::vector<float>{2, 3}));
}

TEST_P(EveryBackend, GivesTiesToTheLowerExpertAndTheLowerGroup) {
  const RouterShape plain{Scoring::kSigmoid, GroupScore::kNone, 5, 3, 1, 1, true, 1.0f};
  EXPECT_EQ(RouteOne(*backend_, {1, 2, 1, 2, 1}, {}, plain).ids, (std::vector<float>{0, 1, 3}));
  const RouterShape grouped{Scoring::kSigmoid, GroupScore::kTopTwoSum, 8, 2, 4, 2, true, 1.0f};
  EXPECT_EQ(RouteOne(*backend_, {1, 1, 2, 2, 1, 1, 2, 2}, {}, grouped).ids, (std::vector<float>{2, 3}));
  EXPECT_EQ(RouteOne(*backend_, {1, 1, 1, 1, 1, 1, 1, 1}, {}, grouped).ids, (std::vector<float>{0, 1}));
}

TEST_P(EveryBackend, RoutesARowThatIsNotFiniteToSomeExpertsAndTheOthersRightly) {
  const RouterShape shape{Scoring::kSigmoid, GroupScore::kTopTwoSum, 8, 3, 4, 2, true, 2.5f};
  Rig rig(*backend_);
  Values logits(3, 8);
  for (int64_t r = 0; r < 3; ++r) std::copy(kLogits.begin(), kLogits.end(), logits.row(r).begin());
  std::fill(logits.row(1).begin(), logits.row(1).end(), std::nanf(""));
  const TensorView ids = rig.Empty(3, 3, DType::kI32), weights = rig.Empty(3, 3, DType::kF32);
  const TensorView device_logits = rig.Put(logits, DType::kF32), bias = rig.Put(RowOf(kBias), DType::kF32);
  rig->Route(ids, weights, device_logits, bias, shape);
  const Values found = rig.Get(ids);
  for (int64_t r = 0; r < 3; ++r) {
    EXPECT_GE(found.at(r, 0), 0.0f);
    EXPECT_LT(found.at(r, 0), found.at(r, 1));
    EXPECT_LT(found.at(r, 1), found.at(r, 2));
    EXPECT_LT(found.at(r, 2), 8.0f);
  }
  EXPECT_EQ(found.at(0, 2), 4.0f);
  EXPECT_EQ(found.at(2, 2), 4.0f);
}

// ---- FP8 ----

// y = x * I^T: shows what the quantiser made of x.
Values ThroughFp8(Backend& backend, const Values& x, ScaleFormat format) {
  Rig rig(backend);
  Values identity(x.cols, x.cols);
  for (int64_t i = 0; i < x.cols; ++i) identity.at(i, i) = 1.0f;
  const HostWeight weight(identity, {"", DType::kF8E4M3, format});
  const std::unique_ptr<LinearWeight> packed = rig.Linear(weight);
  const TensorView input = rig.PutActivation(x), out = rig.Empty(x.rows, x.cols, DType::kF32);
  rig->Linear(out, input, *packed);
  return rig.Get(out);
}

// With amax 448 the scale is 1 and the spec's list of roundings (section 4) comes out as it stands.
TEST_P(EveryBackend, QuantisesInputsByTheListOfRoundings) {
  const Values out = ThroughFp8(
      *backend_, RowOf({448.0f, 0.1f, -0.3f, 17.0f, 18.0f, 19.0f, 0.001f, 0x1p-10f, 3 * 0x1p-10f, 0.0f, -448.0f}),
      ScaleFormat::kF32);
  ExpectNear(out.row(0), {448, 0.1015625, -0.3125, 16, 18, 20, 0x1p-9, 0, 0x1p-8, 0, -448}, 0.0);
}

TEST_P(EveryBackend, ScalesEachBlockOf128InputsByItsLargest) {
  Values x(2, 200);
  x.at(0, 0) = 3.5f;  // ue8m0: 3.5 / 448 = 2^-7 exactly; 1 / 2^-7 = 128 exactly
  x.at(0, 1) = 1.0f;
  x.at(0, 130) = 449.0f;  // ue8m0: 449 / 448 becomes 2; 449 / 2 = 224.5 -> 224; 33 / 2 = 16.5 -> 16
  x.at(0, 131) = 33.0f;
  x.at(1, 5) = 1e-6f;  // under the floor of 1e-4: s = 2^-22, 1e-6 * 2^22 = 4.19 -> 4
  const Values out = ThroughFp8(*backend_, x, ScaleFormat::kUe8m0);
  EXPECT_EQ(out.at(0, 0), 3.5f);
  EXPECT_EQ(out.at(0, 1), 1.0f);
  EXPECT_EQ(out.at(0, 130), 448.0f);
  EXPECT_EQ(out.at(0, 131), 32.0f);
  EXPECT_EQ(out.at(1, 5), 0x1p-20f);
  EXPECT_EQ(out.at(1, 6), 0.0f);
}

TEST_P(EveryBackend, RoundsInputsOfBF16LayersToNearestEven) {
  Rig rig(*backend_);
  const Values identity = [] {
    Values values(4, 4);
    for (int64_t i = 0; i < 4; ++i) values.at(i, i) = 1.0f;
    return values;
  }();
  const HostWeight weight(identity, kBF16Weights);
  const std::unique_ptr<LinearWeight> packed = rig.Linear(weight);
  const TensorView x = rig.PutActivation(RowOf({1 + 0x1p-8f, 1 + 3 * 0x1p-8f, 1 + 0x1p-8f + 0x1p-20f, -1 - 0x1p-9f}));
  const TensorView out = rig.Empty(1, 4, DType::kF32);
  rig->Linear(out, x, *packed);
  ExpectNear(rig.Get(out).row(0),
             {1.0, 1 + 0x1p-6, backend_->activation_dtype() == DType::kF32 ? 1 + 0x1p-7 : 1.0, -1.0}, 0.0);
}

// ---- norms, rotation, SwiGLU, embedding ----

TEST_P(EveryBackend, NormalizesByTheRootMeanSquare) {
  Rig rig(*backend_);
  const TensorView x = rig.PutActivation(RowOf({1, 2, 3, 4})), out = rig.EmptyActivation(1, 4);
  const TensorView weight = rig.Put(RowOf({1, 1, 2, 0.5f}), DType::kF32);
  rig->RmsNorm(out, x, weight, 0.5f);  // mean square 7.5, with eps 8
  const double unit = 1 / std::sqrt(8.0);
  ExpectNear(rig.Get(out).row(0), {unit, 2 * unit, 6 * unit, 2 * unit}, Precision(1e-6));
  const TensorView delta = rig.PutActivation(RowOf({1, 0, -1, 0}));
  rig->AddRmsNorm(out, x, delta, weight, 0.5f);  // [2, 2, 2, 4]: mean square 7
  ExpectNear(rig.Get(x).row(0), {2, 2, 2, 4}, 0.0);
  const double next = 1 / std::sqrt(7.5);
  ExpectNear(rig.Get(out).row(0), {2 * next, 2 * next, 4 * next, 2 * next}, Precision(1e-6));
}

TEST_P(EveryBackend, RotatesPairsAndLeavesTheRest) {
  Rig rig(*backend_);
  const MlaShape shape{2, 4, 2, 4, 2};
  Values table(3, 4);  // position 2: a quarter turn for the first pair, 60 degrees for the second
  table.data = {1, 0, 1, 0, 9, 9, 9, 9, 0, 1, 0.5f, 0.8660254f};
  const TensorView q = rig.PutActivation(RowOf({7, 8, 1, 2, 3, 4, 9, 10, -1, 0, 2, 0}));
  const TensorView device_table = rig.Put(table, DType::kF32);
  const std::vector<int32_t> ids = {0}, positions = {2};
  const std::unique_ptr<DeviceBatch> batch = rig.BatchAt(ids, positions);
  rig->Rope(q, *batch, device_table, shape);
  const double sin = 0.8660254;
  ExpectNear(rig.Get(q).row(0), {7, 8, -2, 1, 1.5 - 4 * sin, 3 * sin + 2, 9, 10, 0, -1, 1, 2 * sin}, Precision(1e-5));
}

// Spec 2.4: rotating interleaved pairs, or halves after putting the even dimensions before the odd ones, gives the same
// products of queries and keys.
TEST_P(EveryBackend, RotatesInterleavedPairsLikeHalvesOfThePermutedDimensions) {
  constexpr int32_t kDims = 16, kNumTokens = 12;
  Random random("rope identity");
  const Values x = random.NormalValues(kNumTokens, kDims), table = RopeTable(100, kDims);
  std::vector<int32_t> ids(kNumTokens), positions;
  for (int32_t t = 0; t < kNumTokens; ++t) positions.push_back(t * 7);
  Rig rig(*backend_);
  const MlaShape shape{1, 4, 0, kDims, 4};
  const TensorView device_x = rig.PutActivation(x), device_table = rig.Put(table, DType::kF32);
  const std::unique_ptr<DeviceBatch> batch = rig.BatchAt(ids, positions);
  rig->Rope(device_x, *batch, device_table, shape);
  const Values rotated = rig.Get(device_x);
  std::vector<std::vector<double>> halves;
  for (int32_t t = 0; t < kNumTokens; ++t) {
    std::vector<double> y(kDims);
    for (int32_t i = 0; i < kDims / 2; ++i) {
      const double cos = table.at(positions[t], 2 * i), sin = table.at(positions[t], 2 * i + 1);
      y[i] = x.at(t, 2 * i) * cos - x.at(t, 2 * i + 1) * sin;
      y[i + kDims / 2] = x.at(t, 2 * i + 1) * cos + x.at(t, 2 * i) * sin;
    }
    halves.push_back(y);
  }
  for (int32_t a = 0; a < kNumTokens; ++a) {
    for (int32_t b = 0; b < kNumTokens; ++b) {
      double interleaved = 0.0, permuted = 0.0;
      for (int32_t i = 0; i < kDims; ++i) {
        interleaved += static_cast<double>(rotated.at(a, i)) * rotated.at(b, i);
        permuted += halves[a][i] * halves[b][i];
      }
      EXPECT_NEAR(interleaved, permuted, Precision(1e-5) * kDims);
    }
  }
}

TEST_P(EveryBackend, ComputesSwiGluByHand) {
  Rig rig(*backend_);
  Values gate(1, 2), up(1, 2), down(2, 1);
  gate.data = {1, 1};  // gate x = 2
  up.data = {3, -1};   // up x = 2
  down.data = {1, -2};
  const HostWeight g(gate, kF32Weights), u(up, kF32Weights), d(down, kF32Weights);
  const auto packed = rig->PackMlp({g.matrix(), u.matrix(), d.matrix()}, ScaleFormat::kF32);
  ASSERT_TRUE(packed.ok());
  const TensorView x = rig.PutActivation(RowOf({1, 1})), out = rig.EmptyActivation(1, 2);
  rig->Mlp(out, x, **packed);
  const double hidden = 2 / (1 + std::exp(-2.0)) * 2;
  ExpectNear(rig.Get(out).row(0), {hidden, -2 * hidden}, Precision(1e-6) * 10);
}

// expert(x) = e * silu(x) * x for expert e: the sum shows which experts ran with which weight.
TEST_P(EveryBackend, WeighsTheChosenExpertsThatAreHere) {
  Rig rig(*backend_);
  const Values one(1, 1, 1.0f);
  std::vector<HostWeight> downs;
  const HostWeight plain(one, kF32Weights);
  const std::vector<int32_t> held = {1, 3, 4};
  for (const int32_t id : held) downs.emplace_back(Values(1, 1, static_cast<float>(id)), kF32Weights);
  std::vector<HostMlp> experts;
  experts.reserve(downs.size());
  for (const HostWeight& down : downs) experts.push_back({plain.matrix(), plain.matrix(), down.matrix()});
  const auto packed = rig->PackExperts(experts, held, ScaleFormat::kF32);
  ASSERT_TRUE(packed.ok());
  Values ids(3, 2), weights(3, 2);
  ids.data = {1, 4, 0, 3, 0, 2};
  weights.data = {0.5f, 0.25f, 0.9f, 2.0f, 0.3f, 0.4f};
  const TensorView x = rig.PutActivation(Values(3, 1, 2.0f)), out = rig.EmptyActivation(3, 1);
  const TensorView device_ids = rig.Put(ids, DType::kI32), device_weights = rig.Put(weights, DType::kF32);
  std::vector<int64_t> load = {10, 0, 0};
  rig->Experts(out, x, device_ids, device_weights, **packed, load.data());
  const double unit = 2 / (1 + std::exp(-2.0)) * 2;
  const Values found = rig.Get(out);
  ExpectNear(found.data, {unit * (0.5 * 1 + 0.25 * 4), unit * 2 * 3, 0.0}, Precision(1e-5) * 10);
  EXPECT_EQ(load, (std::vector<int64_t>{11, 1, 1}));
}

// ---- attention ----

// Spec 2.6: both forms are the same function of the same numbers.
TEST_P(EveryBackend, AttendsAlikeInTheMhaFormAndTheAbsorbedForm) {
  MlaShape shape{4, 48, 24, 8, 20};
  shape.softmax_scale = 0.25f;
  Random random("two forms");
  const AttentionSequences sequences(random, shape, kF32Weights, DType::kF32, {130});
  Rig rig(*backend_), other(*backend_);
  const SequencePart prompt[] = {{0, 0, 130, 0}}, generated[] = {{0, 0, 0, 130}};
  const Values mha = Attend(rig, sequences, prompt, "a"), absorbed = Attend(other, sequences, generated, "b");
  for (size_t i = 0; i < mha.data.size(); ++i) EXPECT_NEAR(mha.data[i], absorbed.data[i], Precision(2e-5));
}

// One head, one latent, no rope: q_nope 1, W_UK 2, W_UV 10, latents ln(1), ln(2), ln(5) halved make scores ln(1),
// ln(2), ln(5) and probabilities 1/8, 2/8, 5/8.
TEST_P(EveryBackend, AttendsByHandInBothForms) {
  MlaShape shape{1, 1, 1, 2, 1};
  shape.softmax_scale = 1.0f;
  Random random("by hand");
  AttentionSequences sequences(random, shape, kF32Weights, DType::kF32, {3});
  Values kv_b(2, 1);
  kv_b.data = {2.0f, 10.0f};
  sequences.kv_b = HostWeight(kv_b, kF32Weights);
  for (int64_t t = 0; t < 3; ++t) {
    const float score = std::log(t == 0 ? 1.0f : t == 1 ? 2.0f : 5.0f);
    std::copy_n(std::vector<float>{score / 2, 0.0f, 0.0f}.begin(), 3, sequences.latents[0].row(t).begin());
    std::copy_n(std::vector<float>{1.0f, 3.0f, 4.0f}.begin(), 3, sequences.queries[0].row(t).begin());
  }
  const double expected = 10 * (std::log(1) / 2 / 8 + std::log(2) / 2 * 2 / 8 + std::log(5) / 2 * 5 / 8);
  const SequencePart prompt[] = {{0, 2, 1, 0}}, generated[] = {{0, 2, 0, 1}};
  Rig rig(*backend_), other(*backend_);
  EXPECT_NEAR(Attend(rig, sequences, prompt, "a").data[0], expected, Precision(1e-5) * 10);
  EXPECT_NEAR(Attend(other, sequences, generated, "a").data[0], expected, Precision(1e-5) * 10);
}

// ---- errors ----

TEST_P(EveryBackend, RefusesWeightsWithoutGoodScales) {
  Random random("scales");
  const WeightKind& kind = kWeightKinds[3];
  const HostWeight good(random, 130, 140, kind);
  HostMatrix without = good.matrix();
  without.scales = nullptr;
  EXPECT_EQ(backend_->PackLinear(without, kind.format).status().code(), absl::StatusCode::kInvalidArgument);
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(), -1.0f, 0.0f}) {
    std::vector<float> scales(8, 1.0f);
    scales[3] = bad;
    HostMatrix spoiled = good.matrix();
    spoiled.scales = scales.data();
    spoiled.scales_stride = 2;
    const absl::Status status = backend_->PackLinear(spoiled, kind.format).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_NE(std::string(status.message()).find("(1, 1)"), std::string::npos) << status.message();
    const HostMlp mlp{spoiled, spoiled, good.matrix()};
    EXPECT_FALSE(backend_->PackMlp(mlp, kind.format).ok());
    EXPECT_FALSE(backend_->PackExperts(std::vector<HostMlp>{mlp}, std::vector<int32_t>{0}, kind.format).ok());
  }
  HostMatrix integers = good.matrix();
  integers.dtype = DType::kI32;
  integers.rows = integers.cols = 1;
  EXPECT_EQ(backend_->PackLinear(integers, kind.format).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(EveryBackend, RefusesMoreMemoryThanThereIsAndNamesBothSizes) {
  const absl::StatusOr<DeviceBuffer> buffer = backend_->Allocate(int64_t{1} << 50);
  ASSERT_FALSE(buffer.ok());
  EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(buffer.status().message()).find("1125899906842624"), std::string::npos) << buffer.status();
  EXPECT_TRUE(backend_->Allocate(0).ok());
}

}  // namespace
}  // namespace weir::kernels
