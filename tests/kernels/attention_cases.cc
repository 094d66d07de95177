#include <cmath>
#include <limits>
#include <string>

#include "tests/kernels/attention_steps.h"
#include "tests/kernels/cases.h"

namespace weir::kernels {
namespace {

struct NamedShape {
  const char* name;
  MlaShape shape;
};

MlaShape Shape(int32_t heads, int32_t latents, int32_t nope, int32_t rope, int32_t value) {
  MlaShape shape{heads, latents, nope, rope, value};
  shape.softmax_scale = 1.0f / std::sqrt(static_cast<float>(shape.qk_head_dim()));
  return shape;
}

const NamedShape kSmall{"small", Shape(3, 40, 12, 8, 20)};
const NamedShape kOdd{"odd", Shape(5, 67, 17, 6, 13)};
const NamedShape kBlocks{"latents_136", Shape(2, 136, 24, 16, 24)};  // more than one FP8 block of latents
const NamedShape kPublished{"published", Shape(2, 512, 128, 64, 128)};
const NamedShape kOneHead{"one_head", Shape(1, 32, 16, 8, 16)};

constexpr DType kCaches[] = {DType::kF32, DType::kBF16};

std::string NameOf(DType dtype) { return dtype == DType::kF32 ? "f32_cache" : "bf16_cache"; }

struct Setting {
  std::string name;
  std::vector<SequencePart> parts;
  int32_t block_size = 64;
  float query_scale = 1.0f;
};

Tolerance AttentionTolerance(AttentionRounding rounding, bool is_sharp) {
  switch (rounding) {
    case AttentionRounding::kNone:
      return is_sharp ? kSharpAttentionTolerance : kAttentionTolerance;
    case AttentionRounding::kOutputLatents:
      return kRoundedOutputTolerance;
    case AttentionRounding::kAllFactors:
      return is_sharp ? kRoundedSharpAttentionTolerance : kRoundedAttentionTolerance;
  }
  return kExact;
}

ParityCase AttentionCase(const NamedShape& shape, const WeightKind& kind, DType cache, const Setting& setting,
                         int64_t padding = 0) {
  std::string name =
      std::string("Attention/") + kind.name + "/" + NameOf(cache) + "/" + shape.name + "/" + setting.name;
  if (padding > 0) name += "/strided";
  auto run = [=](Rig& rig) -> std::vector<Result> {
    Random random(name);
    std::vector<int32_t> lengths;
    lengths.reserve(setting.parts.size());
    for (const SequencePart& part : setting.parts) lengths.push_back(part.end());
    AttentionSequences sequences(random, shape.shape, kind, cache, lengths, setting.query_scale);
    sequences.block_size = setting.block_size;
    const bool is_sharp = setting.query_scale > 1.0f;
    const AttentionRounding rounding = cache == DType::kBF16 ? rig.attention_rounding() : AttentionRounding::kNone;
    const Tolerance tolerance = AttentionTolerance(rounding, is_sharp);
    return {{"out", Attend(rig, sequences, setting.parts, name), tolerance}};
  };
  return {name, run, padding};
}

std::vector<Setting> Settings() {
  std::vector<Setting> settings = {
      {"nothing", {}},
      {"one_token", {{0, 0, 1, 0}}},
      {"one_generated", {{0, 5, 0, 1}}},
      {"prompt_then_generated", {{0, 3, 9, 4}}},
      {"mixed",
       {{0, 0, 70, 0}, {1, 130, 0, 1}, {2, 20, 5, 3}, {3, 0, 1, 0}, {4, 63, 1, 1}, {5, 64, 0, 2}, {6, 199, 0, 1}}},
      {"only_generated", {{0, 10, 0, 1}, {1, 64, 0, 1}, {2, 127, 0, 1}, {3, 1, 0, 5}}},
      {"small_blocks", {{0, 0, 21, 2}, {1, 15, 2, 0}, {2, 16, 0, 1}}, 16},
      {"blocks_of_one", {{0, 0, 5, 2}, {1, 7, 0, 1}}, 1},
      {"sharp_scores", {{0, 0, 40, 3}, {1, 80, 2, 2}}, 64, 200.0f},
      {"equal_scores", {{0, 0, 40, 3}, {1, 80, 2, 2}}, 64, 0.0f},
  };
  for (const int32_t edge : {63, 64, 65, 127, 128, 129}) {
    settings.push_back({"around_" + std::to_string(edge), {{0, edge - 1, 1, 1}, {1, 0, edge, 1}, {2, edge, 0, 1}}});
  }
  return settings;
}

void AddAttentionCases(std::vector<ParityCase>& cases) {
  for (const DType cache : kCaches) {
    for (const Setting& setting : Settings()) {
      cases.push_back(AttentionCase(kSmall, kF32Weights, cache, setting));
      cases.push_back(AttentionCase(kOdd, kBF16Weights, cache, setting));
    }
    for (const WeightKind& kind : kWeightKinds) {
      cases.push_back(AttentionCase(kBlocks, kind, cache, {"mixed", {{0, 40, 30, 3}, {1, 90, 0, 1}}}));
    }
    for (const int32_t context : {2000, 4095}) {
      cases.push_back(
          AttentionCase(kOneHead, kBF16Weights, cache,
                        {"context_" + std::to_string(context), {{0, context, 2, 1}, {1, context + 1, 0, 1}}}));
    }
    cases.push_back(AttentionCase(kPublished, kBF16Weights, cache, {"mixed", {{0, 100, 5, 1}, {1, 65, 0, 1}}}));
    cases.push_back(AttentionCase(kSmall, kBF16Weights, cache, {"mixed", {{0, 40, 30, 3}, {1, 90, 0, 1}}}, 5));
  }
}

// ---- WriteLatent ----

Values LatentInputs(Random& random, int64_t rows, int64_t cols) {
  Values x = random.NormalValues(rows, cols, 3.0f);
  for (int64_t r = 0; r < rows; ++r) {
    if (r % 5 == 1) std::fill(x.row(r).begin(), x.row(r).end(), r % 2 == 0 ? 0.0f : -0.0f);
    for (float& value : x.row(r)) value *= r % 5 == 2 ? 1e-20f : r % 5 == 3 ? 1e15f : 1.0f;
  }
  return x;
}

ParityCase WriteLatentCase(const NamedShape& shape, DType cache_dtype, int64_t num_rows, int64_t padding = 0) {
  std::string name = "WriteLatent/" + NameOf(cache_dtype) + "/" + shape.name + "/" + std::to_string(num_rows);
  if (padding > 0) name += "/strided";
  auto run = [=](Rig& rig) -> std::vector<Result> {
    Random random(name);
    const MlaShape& s = shape.shape;
    constexpr int32_t kNumSlots = 64 * 5;
    const std::vector<int32_t> order = random.Permutation(kNumSlots);
    std::vector<int32_t> token_ids(static_cast<size_t>(num_rows)), positions;
    std::vector<int64_t> slots;
    for (int64_t t = 0; t < num_rows; ++t) {
      positions.push_back(random.Below(500));
      slots.push_back(order[t]);
    }
    const TensorView kv_a = rig.PutActivation(LatentInputs(random, num_rows, s.cache_width()));
    const TensorView weight = rig.Put(random.NormalValues(1, s.kv_lora_rank), DType::kF32);
    const TensorView table = rig.Put(RopeTable(500, s.qk_rope_head_dim), DType::kF32);
    const LatentCache cache{rig.Empty(kNumSlots, s.cache_width(), cache_dtype), 64};
    BatchLayout layout;
    layout.token_ids = token_ids;
    layout.positions = positions;
    layout.slot_mapping = slots;
    const std::unique_ptr<DeviceBatch> batch = rig.Batch(layout);
    rig->WriteLatent(cache, kv_a, weight, 1e-6f, *batch, table, s);
    const Values rows = rig.Get(cache.rows);
    // Latents and rope values are of different size: each has its own measure.
    Values latents(rows.rows, s.kv_lora_rank), rope(rows.rows, s.qk_rope_head_dim);
    for (int64_t r = 0; r < rows.rows; ++r) {
      for (int64_t c = 0; c < rows.cols; ++c) {
        (c < s.kv_lora_rank ? latents.at(r, c) : rope.at(r, c - s.kv_lora_rank)) = rows.at(r, c);
      }
    }
    const bool is_f32 = cache_dtype == DType::kF32;
    return {{"latents", latents, is_f32 ? kNormTolerance : kBF16CacheTolerance},
            {"rope", rope, is_f32 ? kRopeTolerance : kBF16CacheTolerance}};
  };
  return {name, run, padding};
}

}  // namespace

std::vector<ParityCase> AttentionCases() {
  std::vector<ParityCase> cases;
  AddAttentionCases(cases);
  for (const DType cache : kCaches) {
    for (const NamedShape& shape : {kSmall, kOdd, kBlocks, kPublished}) {
      cases.push_back(WriteLatentCase(shape, cache, 1));
      cases.push_back(WriteLatentCase(shape, cache, 37));
    }
    cases.push_back(WriteLatentCase(kSmall, cache, 0));
    cases.push_back(WriteLatentCase(kSmall, cache, 9, /*padding=*/3));
  }
  return cases;
}

}  // namespace weir::kernels
