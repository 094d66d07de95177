#include <algorithm>
#include <bit>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/cases.h"

namespace weir::kernels {

namespace {

// Backends live as long as the program: starting one may start threads.
Backend* Started(const std::string& name) {
  static auto* started = new std::map<std::string, std::unique_ptr<Backend>>;
  const auto [place, is_new] = started->try_emplace(name);
  if (is_new) place->second = BackendNamed(name).make();
  return place->second.get();
}

// The reference's results for a case, computed once for all backends.
const std::vector<Result>& ReferenceResults(size_t index, DType activation_dtype) {
  static auto* known = new std::map<std::pair<size_t, DType>, std::vector<Result>>;
  const auto [place, is_new] = known->try_emplace({index, activation_dtype});
  if (is_new) {
    Rig rig(*Started("reference"), activation_dtype, AllCases()[index].padding);
    place->second = AllCases()[index].run(rig);
  }
  return place->second;
}

class Parity : public testing::TestWithParam<std::tuple<size_t, std::string>> {
 protected:
  void SetUp() override {
    backend_ = Started(std::get<1>(GetParam()));
    if (backend_ == nullptr) GTEST_SKIP() << std::get<1>(GetParam()) << " does not run on this machine";
  }
  const ParityCase& TestCase() const { return AllCases()[std::get<0>(GetParam())]; }

  Backend* backend_ = nullptr;
};

std::vector<size_t> CaseIndices() {
  std::vector<size_t> indices;
  for (size_t i = 0; i < AllCases().size(); ++i) indices.push_back(i);
  return indices;
}

std::vector<std::string> BackendNames(bool only_twins) {
  std::vector<std::string> names;
  for (const BackendUnderTest& backend : Backends()) {
    if (!only_twins || !backend.same_bits_as.empty()) names.push_back(backend.name);
  }
  return names;
}

std::string ParamName(const testing::TestParamInfo<std::tuple<size_t, std::string>>& param) {
  return TestName(std::get<1>(param.param) + "_" + AllCases()[std::get<0>(param.param)].name);
}

TEST_P(Parity, AgreesWithTheReference) {
  Rig rig(*backend_, backend_->activation_dtype(), TestCase().padding);
  rig.set_attention_rounding(BackendNamed(std::get<1>(GetParam())).attention_rounding);
  const std::vector<Result> results = TestCase().run(rig);
  const std::vector<Result>& reference = ReferenceResults(std::get<0>(GetParam()), backend_->activation_dtype());
  EXPECT_EQ(Difference(reference, results, backend_->activation_dtype()), "") << TestCase().name;
  EXPECT_TRUE(rig.PaddingIsIntact()) << "wrote beside its columns";
}

INSTANTIATE_TEST_SUITE_P(EveryBackend, Parity,
                         testing::Combine(testing::ValuesIn(CaseIndices()), testing::ValuesIn(BackendNames(false))),
                         ParamName);

class Twins : public Parity {};

TEST_P(Twins, RepeatEveryBit) {
  Backend* other = Started(BackendNamed(std::get<1>(GetParam())).same_bits_as);
  ASSERT_NE(other, nullptr);
  Rig rig(*backend_, backend_->activation_dtype(), TestCase().padding);
  Rig other_rig(*other, other->activation_dtype(), TestCase().padding);
  const std::vector<Result> results = TestCase().run(rig), other_results = TestCase().run(other_rig);
  ASSERT_EQ(results.size(), other_results.size());
  for (size_t i = 0; i < results.size(); ++i) {
    const std::vector<float>&a = results[i].values.data, &b = other_results[i].values.data;
    EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
      return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
    })) << results[i].name;
  }
}

INSTANTIATE_TEST_SUITE_P(EveryBackend, Twins,
                         testing::Combine(testing::ValuesIn(CaseIndices()), testing::ValuesIn(BackendNames(true))),
                         ParamName);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Twins);

}  // namespace
}  // namespace weir::kernels
