#include "tests/kernels/attention_steps.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/check.h"

namespace weir::kernels {
namespace {

// The integers of a step, and the cache rows that they address.
struct Step {
  std::vector<int32_t> token_ids, positions, block_tables;
  std::vector<int64_t> slot_mapping;
  std::vector<SequenceRows> rows;
  Values queries, cache;

  BatchLayout Layout() const {
    BatchLayout layout;
    layout.token_ids = token_ids;
    layout.positions = positions;
    layout.slot_mapping = slot_mapping;
    layout.sequences = rows;
    layout.block_tables = block_tables;
    return layout;
  }
};

int32_t NumBlocks(const SequencePart& part, int32_t block_size) { return (part.end() + block_size - 1) / block_size; }

void AddPart(Step& step, const AttentionSequences& sequences, const SequencePart& part,
             std::span<const int32_t> blocks) {
  const int32_t block_size = sequences.block_size;
  auto slot_of = [&](int32_t position) {
    return int64_t{blocks[position / block_size]} * block_size + position % block_size;
  };
  const Values& latents = sequences.latents[part.sequence];
  for (int32_t p = 0; p < part.end(); ++p) {
    std::copy_n(latents.row(p).begin(), latents.cols, step.cache.row(slot_of(p)).begin());
  }
  SequenceRows rows;
  rows.first_row = static_cast<int32_t>(step.positions.size());
  rows.num_prompt_rows = part.num_prompt_rows;
  rows.num_generated_rows = part.num_generated_rows;
  rows.first_position = part.first_position;
  rows.block_table_begin = static_cast<int32_t>(step.block_tables.size());
  rows.num_blocks = static_cast<int32_t>(blocks.size());
  step.rows.push_back(rows);
  step.block_tables.insert(step.block_tables.end(), blocks.begin(), blocks.end());
  const Values& queries = sequences.queries[part.sequence];
  for (int32_t p = part.first_position; p < part.end(); ++p) {
    std::copy_n(queries.row(p).begin(), queries.cols,
                step.queries.row(rows.first_row + p - part.first_position).begin());
    step.token_ids.push_back(0);
    step.positions.push_back(p);
    step.slot_mapping.push_back(slot_of(p));
  }
}

Step MakeStep(const AttentionSequences& sequences, std::span<const SequencePart> parts, std::string_view block_order) {
  int32_t num_blocks = 3, num_rows = 0;  // a few blocks belong to nobody
  for (const SequencePart& part : parts) {
    num_blocks += NumBlocks(part, sequences.block_size);
    num_rows += part.num_rows();
  }
  const std::vector<int32_t> order = Random(block_order).Permutation(num_blocks);
  Step step;
  step.cache = Values(int64_t{num_blocks} * sequences.block_size, sequences.shape.cache_width(),
                      std::numeric_limits<float>::quiet_NaN());
  step.queries = Values(num_rows, int64_t{sequences.shape.num_heads} * sequences.shape.qk_head_dim());
  size_t first_block = 0;
  for (const SequencePart& part : parts) {
    const size_t count = static_cast<size_t>(NumBlocks(part, sequences.block_size));
    AddPart(step, sequences, part, std::span(order).subspan(first_block, count));
    first_block += count;
  }
  return step;
}

}  // namespace

AttentionSequences::AttentionSequences(Random& random, const MlaShape& mla_shape, const WeightKind& weights,
                                       DType cache_element, const std::vector<int32_t>& lengths, float query_scale)
    : shape(mla_shape),
      kv_b(random, int64_t{shape.num_heads} * (shape.qk_nope_head_dim + shape.v_head_dim), shape.kv_lora_rank, weights),
      cache_dtype(cache_element) {
  for (const int32_t length : lengths) {
    queries.push_back(random.NormalValues(length, int64_t{shape.num_heads} * shape.qk_head_dim(), query_scale));
    latents.push_back(random.NormalValues(length, shape.cache_width()));
    for (float& x : latents.back().data) x = RoundedTo(cache_dtype, x);
  }
}

Values Attend(Rig& rig, const AttentionSequences& sequences, std::span<const SequencePart> parts,
              std::string_view block_order) {
  const MlaShape& shape = sequences.shape;
  const Step step = MakeStep(sequences, parts, block_order);
  const TensorView queries = rig.PutActivation(step.queries);
  const TensorView out = rig.EmptyActivation(step.queries.rows, int64_t{shape.num_heads} * shape.v_head_dim);
  const LatentCache cache{rig.Put(step.cache, sequences.cache_dtype), sequences.block_size};
  const std::unique_ptr<DeviceBatch> batch = rig.Batch(step.Layout());
  const std::unique_ptr<LinearWeight> kv_b = rig.Linear(sequences.kv_b);
  absl::StatusOr<std::unique_ptr<AbsorbedWeight>> absorbed = rig->PackAbsorbed(sequences.kv_b.matrix(), shape);
  WEIR_CHECK(absorbed.ok(), std::string(absorbed.status().message()));
  rig->PromptAttention(out, queries, cache, *batch, *kv_b, shape);
  rig->GeneratedAttention(out, queries, cache, *batch, **absorbed, shape);
  return rig.Get(out);
}

}  // namespace weir::kernels
