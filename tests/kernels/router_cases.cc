#include <algorithm>
#include <string>

#include "tests/kernels/cases.h"

namespace weir::kernels {
namespace {

struct Router {
  const char* name;
  RouterShape shape;
  bool has_bias = false;
};

using Scoring = RouterShape::Scoring;
using GroupScore = RouterShape::GroupScore;

std::vector<Router> Routers() {
  return {
      {"v3", {Scoring::kSigmoid, GroupScore::kTopTwoSum, 256, 8, 8, 4, true, 2.5f}, true},
      {"v3_one_group", {Scoring::kSigmoid, GroupScore::kNone, 48, 6, 1, 1, true, 2.5f}, true},
      {"v3_groups_of_two", {Scoring::kSigmoid, GroupScore::kTopTwoSum, 12, 3, 6, 2, true, 1.0f}, true},
      {"v3_odd", {Scoring::kSigmoid, GroupScore::kTopTwoSum, 21, 5, 3, 2, true, 2.5f}, true},
      {"v3_no_bias", {Scoring::kSigmoid, GroupScore::kTopTwoSum, 32, 4, 4, 2, false, 1.5f}, false},
      {"v2lite", {Scoring::kSoftmax, GroupScore::kNone, 64, 6, 1, 1, false, 1.0f}, false},
      {"v2", {Scoring::kSoftmax, GroupScore::kMax, 160, 6, 8, 3, false, 16.0f}, false},
      {"v2_normalized", {Scoring::kSoftmax, GroupScore::kMax, 20, 4, 4, 2, true, 1.0f}, false},
      {"every_expert", {Scoring::kSigmoid, GroupScore::kNone, 7, 7, 1, 1, true, 1.0f}, true},
      {"one_expert", {Scoring::kSigmoid, GroupScore::kNone, 1, 1, 1, 1, true, 1.0f}, false},
      {"one_of_many", {Scoring::kSoftmax, GroupScore::kNone, 300, 1, 1, 1, false, 1.0f}, false},
  };
}

struct Logits {
  const char* name;
  float (*value)(Random&, int64_t expert);
};

const Logits kLogits[] = {
    {"plain", [](Random& random, int64_t) { return random.Normal(2.0f); }},
    {"equal", [](Random&, int64_t) { return 0.75f; }},
    // Few distinct values: most choices are ties, which go to the lower id.
    {"ties", [](Random& random, int64_t) { return static_cast<float>(random.Below(3)) - 1.0f; }},
    // Scores that are exactly 1 and exactly 0 in f32, where all order is lost.
    {"saturated", [](Random& random, int64_t) { return random.Below(2) == 0 ? 40.0f + random.Normal() : -200.0f; }},
    {"negative_zero", [](Random& random, int64_t) { return random.Below(2) == 0 ? 0.0f : -0.0f; }},
};

ParityCase RouterCase(const Router& router, const Logits& logits, int64_t t, int64_t padding = 0) {
  std::string name = std::string("Route/") + router.name + "/" + logits.name + "/" + std::to_string(t);
  if (padding > 0) name += "/strided";
  auto run = [=](Rig& rig) -> std::vector<Result> {
    Random random(name);
    const int64_t num_experts = router.shape.num_experts, k = router.shape.num_experts_per_tok;
    Values z(t, num_experts), b(1, num_experts);
    for (int64_t r = 0; r < t; ++r) {
      for (int64_t e = 0; e < num_experts; ++e) z.at(r, e) = logits.value(random, e);
    }
    // Biases of both signs; in rows of ties they would break them, so there they are equal as well.
    const bool is_tied = std::string(logits.name) != "plain";
    for (float& x : b.data) x = is_tied ? 0.25f : random.Normal(0.5f);
    const TensorView ids = rig.Empty(t, k, DType::kI32), weights = rig.Empty(t, k, DType::kF32);
    const TensorView device_logits = rig.Put(z, DType::kF32);
    const TensorView bias = router.has_bias ? rig.Put(b, DType::kF32) : TensorView{};
    rig->Route(ids, weights, device_logits, bias, router.shape);
    return {{"ids", rig.Get(ids), kExact}, {"weights", rig.Get(weights), kRouteTolerance}};
  };
  return {name, run, padding};
}

}  // namespace

std::vector<ParityCase> RouterCases() {
  std::vector<ParityCase> cases;
  for (const Router& router : Routers()) {
    for (const Logits& logits : kLogits) cases.push_back(RouterCase(router, logits, 19));
    cases.push_back(RouterCase(router, kLogits[0], 0));
    cases.push_back(RouterCase(router, kLogits[0], 1));
    cases.push_back(RouterCase(router, kLogits[0], 6, /*padding=*/3));
  }
  return cases;
}

}  // namespace weir::kernels
