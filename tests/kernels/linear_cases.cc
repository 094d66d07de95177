#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "kernels/check.h"
#include "tests/kernels/cases.h"

namespace weir::kernels {
namespace {

std::string Dims(std::initializer_list<int64_t> dims) {
  std::string text;
  for (const int64_t dim : dims) {
    if (!text.empty()) text += 'x';
    text += std::to_string(dim);
  }
  return text;
}

// ---- inputs ----

struct Inputs {
  const char* name;
  Values (*make)(Random&, int64_t rows, int64_t cols);
};

Values Plain(Random& random, int64_t rows, int64_t cols) { return random.NormalValues(rows, cols); }

// Rows of one kind each: zeros, -0, denormals, very small, very large, one element that dwarfs the rest, plain.
Values Extreme(Random& random, int64_t rows, int64_t cols) {
  Values x = random.NormalValues(rows, cols);
  for (int64_t r = 0; r < rows; ++r) {
    for (float& value : x.row(r)) {
      switch (r % 7) {
        case 0:
          value = 0.0f;
          break;
        case 1:
          value = -0.0f;
          break;
        case 2:
          value *= 1e-40f;
          break;
        case 3:
          value *= 1e-6f;
          break;
        case 4:
          value *= 1e4f;
          break;
        default:
          break;
      }
    }
    if (r % 7 == 5) x.row(r)[random.Below(static_cast<int32_t>(cols))] = 3e4f;
  }
  return x;
}

Values Huge(Random& random, int64_t rows, int64_t cols) { return random.NormalValues(rows, cols, 1e30f); }

// A NaN or an infinity in every other row: its own row must show it, the others must not.
Values NotFinite(Random& random, int64_t rows, int64_t cols) {
  Values x = random.NormalValues(rows, cols);
  const float bad[] = {std::nanf(""), std::numeric_limits<float>::infinity(), -std::nanf("")};
  for (int64_t r = 0; r < rows; r += 2) x.row(r)[random.Below(static_cast<int32_t>(cols))] = bad[r / 2 % 3];
  return x;
}

constexpr Inputs kPlain{"plain", Plain}, kExtreme{"extreme", Extreme}, kHuge{"huge", Huge},
    kNotFinite{"not_finite", NotFinite};

// Norms of the rows of x: with the weights' norms, what a sum may grow to.
std::vector<double> Magnitudes(const Values& x, double weight_norm) {
  std::vector<double> magnitudes;
  magnitudes.reserve(static_cast<size_t>(x.rows));
  for (int64_t r = 0; r < x.rows; ++r) {
    double sum = 0.0;
    for (const float value : x.row(r)) sum += static_cast<double>(value) * value;
    magnitudes.push_back(std::sqrt(sum / static_cast<double>(std::max<int64_t>(x.cols, 1))) * weight_norm);
  }
  return magnitudes;
}

// ---- Linear ----

ParityCase LinearCase(const WeightKind& kind, int64_t t, int64_t k, int64_t n, const PartOfTensor& part = {},
                      const Inputs& inputs = kPlain, int64_t padding = 0) {
  std::string name = std::string("Linear/") + kind.name + "/" + Dims({t, k, n}) + "/" + inputs.name;
  if (part.first_row + part.first_col > 0) name += "/from_" + Dims({part.first_row, part.first_col});
  if (part.is_unaligned) name += "/unaligned";
  if (padding > 0) name += "/strided";
  auto run = [=](Rig& rig) -> std::vector<Result> {
    Random random(name);
    const HostWeight weight(random, n, k, kind, part);
    const Values x = inputs.make(random, t, k);
    const std::unique_ptr<LinearWeight> packed = rig.Linear(weight);
    const TensorView input = rig.PutActivation(x);
    const TensorView out = rig.EmptyActivation(t, n), logits = rig.Empty(t, n, DType::kF32);
    rig->Linear(out, input, *packed);
    rig->Linear(logits, input, *packed);
    const std::vector<double> magnitudes = Magnitudes(x, weight.LargestRowNorm());
    return {{"out", rig.Get(out), kLinearTolerance, magnitudes},
            {"logits", rig.Get(logits), kLinearTolerance, magnitudes}};
  };
  return {name, run, padding};
}

void AddLinearCases(std::vector<ParityCase>& cases) {
  const int64_t shapes[][3] = {{0, 16, 8},   {1, 1, 1},     {1, 7, 3},     {3, 129, 5},   {1, 128, 128},
                               {2, 127, 65}, {5, 256, 33},  {17, 130, 97}, {64, 192, 48}, {33, 320, 131},
                               {8, 64, 17},  {1, 2048, 70}, {2, 7168, 9},  {31, 96, 160}, {129, 40, 24}};
  for (const WeightKind& kind : kWeightKinds) {
    for (const auto& [t, k, n] : shapes) cases.push_back(LinearCase(kind, t, k, n));
    cases.push_back(LinearCase(kind, 14, 200, 70, {}, kExtreme));
    cases.push_back(LinearCase(kind, 7, 130, 20, {}, kNotFinite));
    cases.push_back(LinearCase(kind, 3, 130, 20, {}, kHuge));
    cases.push_back(LinearCase(kind, 5, 150, 40, {3, 5, /*is_unaligned=*/true}));
    cases.push_back(LinearCase(kind, 6, 150, 40, {}, kPlain, /*padding=*/5));
    const PartOfTensor parts[] = {{64, 0}, {0, 64}, {100, 37}, {128, 256}, {127, 127}, {1, 1}};
    for (const PartOfTensor& part : parts) cases.push_back(LinearCase(kind, 4, 270, 140, part));
  }
}

// ---- Mlp ----

Tolerance MlpTolerance(const WeightKind& kind) {
  if (kind.dtype == DType::kF32) return kMlpF32Tolerance;
  return kind.dtype == DType::kF8E4M3 ? kMlpFp8Tolerance : kMlpHalfTolerance;
}

struct Mlp3 {
  Mlp3(Random& random, int64_t hidden, int64_t intermediate, const WeightKind& kind, int64_t first = 0)
      : gate(random, intermediate, hidden, kind, {first, 0}),
        up(random, intermediate, hidden, kind, {first, 0}),
        down(random, hidden, intermediate, kind, {0, first}) {}
  HostMlp host() const { return {gate.matrix(), up.matrix(), down.matrix()}; }
  HostWeight gate, up, down;
};

ParityCase MlpCase(const WeightKind& kind, int64_t t, int64_t hidden, int64_t intermediate, int64_t first = 0,
                   const Inputs& inputs = kPlain, int64_t padding = 0) {
  std::string name = std::string("Mlp/") + kind.name + "/" + Dims({t, hidden, intermediate}) + "/" + inputs.name;
  if (first > 0) name += "/from_" + std::to_string(first);
  if (padding > 0) name += "/strided";
  auto run = [=](Rig& rig) -> std::vector<Result> {
    Random random(name);
    const Mlp3 mlp(random, hidden, intermediate, kind, first);
    const auto packed = rig->PackMlp(mlp.host(), kind.format);
    WEIR_CHECK(packed.ok());
    const TensorView input = rig.PutActivation(inputs.make(random, t, hidden));
    const TensorView out = rig.EmptyActivation(t, hidden);
    rig->Mlp(out, input, **packed);
    return {{"out", rig.Get(out), MlpTolerance(kind)}};
  };
  return {name, run, padding};
}

void AddMlpCases(std::vector<ParityCase>& cases) {
  for (const WeightKind& kind : kWeightKinds) {
    cases.push_back(MlpCase(kind, 0, 32, 16));
    cases.push_back(MlpCase(kind, 1, 136, 40));
    cases.push_back(MlpCase(kind, 5, 200, 320));
    cases.push_back(MlpCase(kind, 33, 130, 129));
    cases.push_back(MlpCase(kind, 3, 128, 160, /*first=*/96));
    cases.push_back(MlpCase(kind, 4, 100, 50, /*first=*/125));
    cases.push_back(MlpCase(kind, 6, 96, 72, 0, kNotFinite));
    cases.push_back(MlpCase(kind, 5, 96, 72, 0, kPlain, /*padding=*/3));
  }
}

// ---- Experts ----

// How tokens are spread over E experts: ids[T, K].
struct Spread {
  const char* name;
  int32_t num_experts;
  int32_t num_experts_per_tok;
  std::vector<int32_t> held;                                     // ids that this rank has
  std::function<std::vector<int32_t>(Random&, int64_t)> ids_of;  // of token t, ascending
};

std::function<std::vector<int32_t>(Random&, int64_t)> Anywhere(int32_t num_experts, int32_t k) {
  return [=](Random& random, int64_t) {
    std::vector<int32_t> ids = random.Permutation(num_experts);
    ids.resize(static_cast<size_t>(k));
    std::sort(ids.begin(), ids.end());
    return ids;
  };
}

std::vector<int32_t> Range(int32_t first, int32_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

std::vector<Spread> Spreads() {
  return {
      {"all_here", 8, 3, Range(0, 8), Anywhere(8, 3)},
      {"half_elsewhere", 8, 3, Range(4, 4), Anywhere(8, 3)},
      {"scattered", 9, 4, {1, 3, 4, 8}, Anywhere(9, 4)},
      {"none_held", 8, 2, {}, Anywhere(8, 2)},
      {"one_held", 8, 2, {5}, Anywhere(8, 2)},
      {"all_to_one", 8, 1, Range(0, 8), [](Random&, int64_t) { return std::vector<int32_t>{6}; }},
      {"none_comes_here", 8, 2, {6, 7}, [](Random&, int64_t) { return std::vector<int32_t>{0, 3}; }},
      {"every_expert", 6, 6, Range(0, 6), [](Random&, int64_t) { return Range(0, 6); }},
  };
}

ParityCase ExpertsCase(const WeightKind& kind, const Spread& spread, int64_t t, int64_t hidden, int64_t intermediate,
                       int64_t first = 0, int64_t padding = 0) {
  std::string name = std::string("Experts/") + kind.name + "/" + spread.name + "/" + Dims({t, hidden, intermediate});
  if (first > 0) name += "/from_" + std::to_string(first);
  if (padding > 0) name += "/strided";
  auto run = [=](Rig& rig) -> std::vector<Result> {
    Random random(name);
    std::vector<Mlp3> experts;
    std::vector<HostMlp> hosts;
    experts.reserve(spread.held.size());
    hosts.reserve(spread.held.size());
    for (size_t e = 0; e < spread.held.size(); ++e) {
      hosts.push_back(experts.emplace_back(random, hidden, intermediate, kind, first).host());
    }
    const auto packed = rig->PackExperts(hosts, spread.held, kind.format);
    WEIR_CHECK(packed.ok());
    Values ids(t, spread.num_experts_per_tok), weights(t, spread.num_experts_per_tok);
    for (int64_t r = 0; r < t; ++r) {
      const std::vector<int32_t> chosen = spread.ids_of(random, r);
      std::copy(chosen.begin(), chosen.end(), ids.row(r).begin());
      for (float& weight : weights.row(r)) weight = random.Uniform(0.1f, 1.0f);
    }
    const TensorView input = rig.PutActivation(random.NormalValues(t, hidden));
    const TensorView out = rig.EmptyActivation(t, hidden);
    const TensorView device_ids = rig.Put(ids, DType::kI32), device_weights = rig.Put(weights, DType::kF32);
    std::vector<int64_t> load(spread.held.size(), 1000);
    rig->Experts(out, input, device_ids, device_weights, **packed, load.data());
    rig->Experts(out, input, device_ids, device_weights, **packed, nullptr);
    Values result = rig.Get(out), loads(1, static_cast<int64_t>(load.size()));
    std::copy(load.begin(), load.end(), loads.data.begin());
    return {{"out", result, MlpTolerance(kind)}, {"load", loads, kExact}};
  };
  return {name, run, padding};
}

void AddExpertsCases(std::vector<ParityCase>& cases) {
  for (const WeightKind& kind : kWeightKinds) {
    for (const Spread& spread : Spreads()) {
      cases.push_back(ExpertsCase(kind, spread, 1, 136, 40));
      cases.push_back(ExpertsCase(kind, spread, 29, 72, 136));
    }
    cases.push_back(ExpertsCase(kind, Spreads()[0], 0, 72, 40));
    cases.push_back(ExpertsCase(kind, Spreads()[1], 90, 64, 48, /*first=*/112));
    cases.push_back(ExpertsCase(kind, Spreads()[2], 7, 64, 48, 0, /*padding=*/3));
  }
}

}  // namespace

std::vector<ParityCase> LinearCases() {
  std::vector<ParityCase> cases;
  AddLinearCases(cases);
  AddMlpCases(cases);
  AddExpertsCases(cases);
  return cases;
}

}  // namespace weir::kernels
