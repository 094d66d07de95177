#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/check.h"
#include "tests/kernels/cases.h"

namespace weir::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// ---- memory ----

std::vector<Result> CopyAndZero(Rig& rig) {
  Random random("memory");
  std::vector<Result> results;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI32}) {
    Values source(7, 11);
    for (float& x : source.data) x = static_cast<float>(random.Below(100) - 50);
    const TensorView a = rig.Put(source, dtype), b = rig.Empty(9, 14, dtype);
    rig->Copy(b.Rows(1, 7).Columns(2, 11), a);
    rig->Zero(b.Rows(3, 2).Columns(5, 4));
    results.push_back({"copied", rig.Get(b), kExact});
    rig->Copy(a.Rows(0, 0), a.Rows(0, 0));
    rig->Zero(a.Columns(3, 0));
    results.push_back({"source", rig.Get(a), kExact});
  }
  return results;
}

// ---- Embed ----

ParityCase EmbedCase(DType table_dtype, int32_t first_id, int64_t padding) {
  const std::string name =
      "Embed/" + std::string(Name(table_dtype)) + "/from_" + std::to_string(first_id) + (padding > 0 ? "/strided" : "");
  auto run = [=](Rig& rig) -> std::vector<Result> {
    Random random(name);
    const TensorView table = rig.Put(random.NormalValues(10, 37), table_dtype);
    const std::vector<int32_t> ids = {0, first_id, first_id + 9, first_id + 10, first_id - 1, 5, first_id + 3,
                                      5, 1 << 30};
    const std::vector<int32_t> positions(ids.size(), 0);
    const std::unique_ptr<DeviceBatch> batch = rig.BatchAt(ids, positions);
    const TensorView out = rig.EmptyActivation(static_cast<int64_t>(ids.size()), 37);
    rig->Embed(out, *batch, table, first_id);
    return {{"out", rig.Get(out), kExact}};
  };
  return {name, run, padding};
}

// ---- norms ----

// Rows of one kind each: plain, zeros, -0, denormals, tiny, large, constant, one spike, NaN, infinity.
Values NormInputs(Random& random, int64_t rows, int64_t cols) {
  Values x = random.NormalValues(rows, cols);
  for (int64_t r = 0; r < rows; ++r) {
    const float factors[] = {1.0f, 0.0f, -0.0f, 1e-40f, 1e-12f, 1e12f};
    for (float& value : x.row(r)) value = r % 10 < 6 ? value * factors[r % 10] : r % 10 == 6 ? 2.5f : value;
    if (r % 10 == 7) x.row(r)[cols / 2] = 1e6f;
    if (r % 10 == 8) x.row(r)[cols - 1] = kNaN;
    if (r % 10 == 9) x.row(r)[0] = kInfinity;
  }
  return x;
}

ParityCase NormCase(int64_t t, int64_t cols, float eps, int64_t padding = 0) {
  const std::string name = "RmsNorm/" + std::to_string(t) + "x" + std::to_string(cols) + "/" +
                           (eps > 1e-3f ? "large_eps" : "eps") + (padding > 0 ? "/strided" : "");
  auto run = [=](Rig& rig) -> std::vector<Result> {
    Random random(name);
    const TensorView x = rig.PutActivation(NormInputs(random, t, cols));
    const TensorView weight = rig.Put(random.NormalValues(1, cols), DType::kF32);
    const TensorView out = rig.EmptyActivation(t, cols), sum = rig.EmptyActivation(t, cols);
    rig->RmsNorm(out, x, weight, eps);
    rig->Copy(sum, x);
    const TensorView delta = rig.PutActivation(random.NormalValues(t, cols)), normed = rig.EmptyActivation(t, cols);
    rig->AddRmsNorm(normed, sum, delta, weight, eps);
    std::vector<Result> results = {{"out", rig.Get(out), kNormTolerance},
                                   {"residual", rig.Get(sum), kExact},
                                   {"normed", rig.Get(normed), kNormTolerance},
                                   {"input", rig.Get(x), kExact}};
    rig->RmsNorm(x, x, weight, eps);
    results.push_back({"in_place", rig.Get(x), kNormTolerance});
    return results;
  };
  return {name, run, padding};
}

// ---- Rope ----

ParityCase RopeCase(int32_t heads, int32_t nope, int32_t rope, int64_t t, int64_t padding = 0) {
  const std::string name = "Rope/" + std::to_string(heads) + "x" + std::to_string(nope) + "+" + std::to_string(rope) +
                           "/" + std::to_string(t) + (padding > 0 ? "/strided" : "");
  auto run = [=](Rig& rig) -> std::vector<Result> {
    Random random(name);
    const MlaShape shape{heads, 16, nope, rope, 16};
    const TensorView table = rig.Put(RopeTable(5000, rope), DType::kF32);
    std::vector<int32_t> ids(static_cast<size_t>(t)), positions;
    for (int64_t r = 0; r < t; ++r) positions.push_back(r == 0 ? 4999 : r == 1 ? 0 : random.Below(5000));
    const std::unique_ptr<DeviceBatch> batch = rig.BatchAt(ids, positions);
    const TensorView q = rig.PutActivation(NormInputs(random, t, int64_t{heads} * (nope + rope)));
    rig->Rope(q, *batch, table, shape);
    return {{"q", rig.Get(q), kRopeTolerance}};
  };
  return {name, run, padding};
}

// ---- Add, GatherSampleRows ----

ParityCase AddCase(int64_t t, int64_t cols, int64_t padding = 0) {
  const std::string name = "Add/" + std::to_string(t) + "x" + std::to_string(cols) + (padding > 0 ? "/strided" : "");
  auto run = [=](Rig& rig) -> std::vector<Result> {
    Random random(name);
    const TensorView a = rig.PutActivation(NormInputs(random, t, cols)),
                     b = rig.PutActivation(NormInputs(random, t, cols));
    rig->Add(a, b);
    return {{"a", rig.Get(a), kExact}, {"b", rig.Get(b), kExact}};
  };
  return {name, run, padding};
}

ParityCase GatherCase(const std::string& name, const std::vector<int32_t>& sample_rows, int64_t padding = 0) {
  auto run = [=](Rig& rig) -> std::vector<Result> {
    Random random(name);
    const TensorView x = rig.PutActivation(random.NormalValues(9, 21));
    const TensorView out = rig.EmptyActivation(static_cast<int64_t>(sample_rows.size()), 21);
    const std::vector<int32_t> zeros(9, 0);
    const std::vector<int64_t> slots(9, 0);
    BatchLayout layout;
    layout.token_ids = layout.positions = zeros;
    layout.slot_mapping = slots;
    layout.sample_rows = sample_rows;
    const std::unique_ptr<DeviceBatch> batch = rig.Batch(layout);
    rig->GatherSampleRows(out, x, *batch);
    return {{"out", rig.Get(out), kExact}};
  };
  return {"GatherSampleRows/" + name, run, padding};
}

// ---- Sample ----

std::vector<SamplingParams> SampleSettings() {
  std::vector<SamplingParams> settings(9);
  settings[0].temperature = 0.0f;
  settings[1].temperature = 0.0f;
  settings[1].num_top_logprobs = kMaxTopLogprobs;
  settings[1].wants_logprob = true;
  settings[2].wants_logprob = true;
  settings[3].top_k = 5;
  settings[4].top_p = 0.7f;
  settings[5].min_p = 0.1f;
  settings[6].repetition_penalty = 1.3f;
  settings[6].presence_penalty = 0.5f;
  settings[6].frequency_penalty = 0.25f;
  settings[7].logit_bias = {{3, 4.0f}, {4, -100.0f}};
  settings[8].temperature = 2.0f;
  settings[8].top_k = 40;
  settings[8].top_p = 0.9f;
  settings[8].num_top_logprobs = 3;
  return settings;
}

ParityCase SampleCase(int64_t vocab_size, int64_t padding = 0) {
  const std::string name = "Sample/" + std::to_string(vocab_size) + (padding > 0 ? "/strided" : "");
  auto run = [=](Rig& rig) -> std::vector<Result> {
    Random random(name);
    const std::vector<SamplingParams> settings = SampleSettings();
    const std::vector<TokenCount> history = {{0, 1, 0}, {2, 0, 2}, {5, 3, 1}};
    const std::vector<uint32_t> mask(static_cast<size_t>(vocab_size + 31) / 32, 0x5a5a5a5au);
    // Each setting once plain and once masked, then a given token, then rows that are not finite.
    const int64_t num_rows = static_cast<int64_t>(settings.size()) * 2 + 3;
    Values logits = random.NormalValues(num_rows, vocab_size, 2.0f);
    std::vector<SampleRow> rows(static_cast<size_t>(num_rows));
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].params = &settings[i % settings.size()];
      rows[i].history = history;
      rows[i].noise_key = NoiseKey(7, i / 3);
      rows[i].position = static_cast<int64_t>(i % 3);
      if (i >= settings.size() && i < 2 * settings.size()) rows[i].allowed_tokens = mask;
    }
    rows[rows.size() - 3].given_token = 6;
    logits.at(num_rows - 2, vocab_size / 2) = kNaN;
    logits.at(num_rows - 1, vocab_size - 1) = kInfinity;
    const TensorView device_logits = rig.Put(logits, DType::kF32);
    std::vector<SampleOutput> outputs(rows.size());
    rig->Sample(outputs, device_logits, rows);
    WEIR_CHECK(rig->Synchronize().ok());
    Values tokens(num_rows, 2 + kMaxTopLogprobs, -1.0f), logprobs(num_rows, 1 + kMaxTopLogprobs);
    for (int64_t r = 0; r < num_rows; ++r) {
      const SampleOutput& output = outputs[r];
      tokens.at(r, 0) = static_cast<float>(output.token);
      tokens.at(r, 1) = output.is_finite ? 1.0f : 0.0f;
      logprobs.at(r, 0) = output.logprob;
      for (size_t i = 0; i < output.top_logprobs.size(); ++i) {
        tokens.at(r, 2 + static_cast<int64_t>(i)) = static_cast<float>(output.top_logprobs[i].first);
        logprobs.at(r, 1 + static_cast<int64_t>(i)) = output.top_logprobs[i].second;
      }
    }
    return {{"tokens", tokens, kExact}, {"logprobs", logprobs, kLogprobTolerance}};
  };
  return {name, run, padding};
}

}  // namespace

std::vector<ParityCase> OtherCases() {
  std::vector<ParityCase> cases = {{"CopyAndZero", CopyAndZero, 0}, {"CopyAndZero/strided", CopyAndZero, 3}};
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    cases.push_back(EmbedCase(dtype, 0, 0));
    cases.push_back(EmbedCase(dtype, 100, 0));
    cases.push_back(EmbedCase(dtype, 7, 3));
  }
  const int64_t norm_shapes[][2] = {{0, 16}, {1, 1}, {1, 7}, {10, 33}, {10, 64}, {23, 257}, {2, 7168}};
  for (const auto& [t, cols] : norm_shapes) cases.push_back(NormCase(t, cols, 1e-6f));
  cases.push_back(NormCase(10, 40, 0.1f));
  cases.push_back(NormCase(10, 40, 1e-6f, /*padding=*/3));
  cases.push_back(RopeCase(1, 0, 2, 3));
  cases.push_back(RopeCase(3, 12, 8, 20));
  cases.push_back(RopeCase(5, 17, 6, 10));
  cases.push_back(RopeCase(2, 128, 64, 11));
  cases.push_back(RopeCase(2, 128, 64, 0));
  cases.push_back(RopeCase(3, 12, 8, 7, /*padding=*/5));
  cases.push_back(AddCase(0, 8));
  cases.push_back(AddCase(10, 1));
  cases.push_back(AddCase(21, 131));
  cases.push_back(AddCase(10, 24, /*padding=*/3));
  cases.push_back(GatherCase("none", {}));
  cases.push_back(GatherCase("some", {0, 3, 8}));
  cases.push_back(GatherCase("all", {0, 1, 2, 3, 4, 5, 6, 7, 8}));
  cases.push_back(GatherCase("strided", {2, 7}, /*padding=*/3));
  for (const int64_t vocab_size : {33, 1000, 129280}) cases.push_back(SampleCase(vocab_size));
  cases.push_back(SampleCase(100, /*padding=*/5));
  return cases;
}

}  // namespace weir::kernels
