#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_parts.h"

// The MHA form (spec 2.3): prompt rows.

namespace weir::kernels::cpu {
namespace {

constexpr int64_t kTilePositions = 128;   // context positions expanded at once; tiles begin at its multiples
constexpr int64_t kRowsAtOnce = 56;       // query rows whose scores are in cache at once: 4 blocks of 14
constexpr int64_t kMaxPromptRows = 2048;  // of one task

// One head of one sequence, for some of its prompt rows.
class PromptHead {
 public:
  PromptHead(const Machine& machine, const AttentionTensors& tensors, const Matrix& kv_b, uint8_t* memory)
      : machine_(machine),
        tensors_(tensors),
        shape_(tensors.shape),
        kv_b_(kv_b),
        dtype_(OperandType(machine, tensors.cache)),
        head_outputs_(shape_.qk_nope_head_dim + shape_.v_head_dim),
        expanded_stride_(RoundUp(head_outputs_, kPanelOutputs) + kPanelOutputs),
        query_bytes_(OperandRowBytes(machine, dtype_, shape_.qk_head_dim())),
        probability_bytes_(OperandRowBytes(machine, dtype_, kTilePositions)),
        latent_bytes_(InputRowBytes(machine, kv_b)) {
    Arena arena(memory);
    expanded_ = arena.Take<float>(kTilePositions * expanded_stride_);
    latents_ = arena.Take<uint8_t>(kTilePositions * latent_bytes_);
    latent_scales_ = arena.Take<float>(kTilePositions * kv_b.num_blocks);
    latent_row_ = arena.Take<float>(shape_.cache_width());
    keys_ = OnTheFly(dtype_, kTilePositions, shape_.qk_head_dim(), nullptr);
    keys_.panels = key_panels_ = arena.Take<uint8_t>(PanelsBytes(keys_));
    values_ = OnTheFly(dtype_, shape_.v_head_dim, kTilePositions, nullptr);
    // A line more than a panel needs: lines of all panels are written in turn, and would fall into the same few sets of
    // the first-level cache.
    values_.panel_stride += kLineBytes;
    values_.panels = value_panels_ = arena.Take<uint8_t>(values_.num_panels() * values_.panel_stride);
    key_rows_ = arena.Take<uint8_t>(kPanelOutputs * query_bytes_);
    scores_ = arena.Take<float>(kRowsAtOnce * kTilePositions);
    probabilities_ = arena.Take<uint8_t>(kRowsAtOnce * probability_bytes_);
    decay_ = arena.Take<float>(kRowsAtOnce);
    zeros_ = arena.Take<float>(shape_.v_head_dim);
    if (memory != nullptr) std::memset(zeros_, 0, static_cast<size_t>(shape_.v_head_dim) * sizeof(float));
    queries_ = arena.Take<uint8_t>(kMaxPromptRows * query_bytes_);
    sums_ = arena.Take<float>(kMaxPromptRows * shape_.v_head_dim);
    max_ = arena.Take<float>(kMaxPromptRows);
    norm_ = arena.Take<float>(kMaxPromptRows);
    num_bytes_ = arena.used();
  }
  int64_t num_bytes() const { return num_bytes_; }

  void Run(const AttentionPlan::PromptTask& task) {
    const SequenceRows& sequence = tensors_.batch.sequences[task.sequence];
    const Context context(tensors_, sequence);
    head_ = task.head;
    num_rows_ = task.num_rows;
    first_position_ = int64_t{sequence.first_position} + task.first_row;
    const int64_t first_row = int64_t{sequence.first_row} + task.first_row;
    WEIR_CHECK(first_position_ + num_rows_ <= context.num_positions(), "a block table is too short");
    TakeQueries(first_row);
    for (int64_t tile = 0; tile < first_position_ + num_rows_; tile += kTilePositions) {
      const int64_t num_positions = std::min(kTilePositions, first_position_ + num_rows_ - tile);
      Expand(context, tile, num_positions);
      MakeKeys(context, tile, num_positions);
      const int64_t num_good = NumGoodPositions(num_positions);
      const int64_t first_touched = std::clamp<int64_t>(tile + num_good - first_position_, 0, num_rows_);
      if (num_good < num_positions && first_touched > 0) {
        // A probability of zero does not hide a value that is not finite: rows that do not see it must not meet it.
        MakeValues(num_good);
        AttendTile(tile, 0, first_touched);
      }
      MakeValues(num_positions);
      AttendTile(tile, num_good < num_positions ? first_touched : 0, num_rows_);
    }
    WriteResults(first_row);
  }

 private:
  void TakeQueries(int64_t first_row) {
    for (int64_t r = 0; r < num_rows_; ++r) {
      const float* q = FloatRow(tensors_.q, first_row + r) + int64_t{head_} * shape_.qk_head_dim();
      PrepareRow(machine_, keys_, q, queries_ + r * query_bytes_, nullptr);
    }
    std::memset(sums_, 0, static_cast<size_t>(num_rows_ * shape_.v_head_dim) * sizeof(float));
    std::fill_n(max_, num_rows_, -std::numeric_limits<float>::infinity());
    std::fill_n(norm_, num_rows_, 0.0f);
  }

  // kv_b's outputs of this head for the tile's latents: columns [skipped_, skipped_ + dn + dv) of expanded_.
  void Expand(const Context& context, int64_t tile, int64_t num_positions) {
    const int64_t first_output = int64_t{head_} * head_outputs_, first_panel = first_output / kPanelOutputs;
    skipped_ = first_output % kPanelOutputs;
    Product product{&kv_b_};
    product.first_panel = first_panel;
    product.prefetches_next = false;
    product.num_panels = (first_output + head_outputs_ + kPanelOutputs - 1) / kPanelOutputs - first_panel;
    product.out_stride = expanded_stride_;
    for (int64_t done = 0; done < num_positions; done += product.num_rows) {
      product.num_rows = context.RunLength(tile + done, num_positions - done);
      product.rows = Latents(context, tile + done, product.num_rows);
      product.out = expanded_ + done * expanded_stride_;
      Multiply(machine_, product);
    }
  }

  // Cache rows as kv_b's inputs: as they are where the form is the same, and otherwise converted.
  InputRows Latents(const Context& context, int64_t position, int64_t num_rows) {
    const bool is_same =
        context.dtype() == kv_b_.input && StoresInputAsBf16(machine_, kv_b_.input) == (context.dtype() == DType::kBF16);
    if (is_same && kv_b_.padded_inputs == kv_b_.inputs) {
      return {const_cast<uint8_t*>(context.Row(position)), context.stride_bytes()};
    }
    InputRows rows{latents_, latent_bytes_, latent_scales_, kv_b_.num_blocks};
    for (int64_t r = 0; r < num_rows; ++r) {
      Widen(machine_, context.dtype(), context.Row(position + r), latent_row_, kv_b_.inputs);
      const InputRows row = rows.From(r);
      PrepareRow(machine_, kv_b_, latent_row_, row.x, row.scales);
    }
    return rows;
  }

  // Keys, sixteen positions at a time: the head's own part from expanded_, the rope part from the cache.
  void MakeKeys(const Context& context, int64_t tile, int64_t num_positions) {
    const int64_t element_bytes = SizeOf(dtype_), padded_bytes = keys_.padded_inputs * element_bytes;
    const int64_t nope_bytes = shape_.qk_nope_head_dim * element_bytes;
    const void* rows[kPanelOutputs];
    for (int64_t r = 0; r < kPanelOutputs; ++r) rows[r] = key_rows_ + r * query_bytes_;
    for (int64_t first = 0; first < num_positions; first += kPanelOutputs) {
      for (int64_t r = 0; r < kPanelOutputs; ++r) {
        uint8_t* key = key_rows_ + r * query_bytes_;
        std::memset(key, 0, static_cast<size_t>(padded_bytes));
        if (first + r >= num_positions) continue;
        const float* nope = expanded_ + (first + r) * expanded_stride_ + skipped_;
        const uint8_t* rope = context.Row(tile + first + r) + shape_.kv_lora_rank * SizeOf(context.dtype());
        if (dtype_ == DType::kBF16) {
          machine_.ops.round_to_bf16(reinterpret_cast<uint16_t*>(key), nope, shape_.qk_nope_head_dim);
          std::memcpy(key + nope_bytes, rope, static_cast<size_t>(shape_.qk_rope_head_dim) * 2);
        } else {
          std::memcpy(key, nope, static_cast<size_t>(nope_bytes));
          Widen(machine_, context.dtype(), rope, reinterpret_cast<float*>(key + nope_bytes), shape_.qk_rope_head_dim);
        }
      }
      uint8_t* panel = key_panels_ + first / kPanelOutputs * keys_.panel_bytes;
      machine_.tiles.transpose(reinterpret_cast<uint32_t*>(panel), rows, padded_bytes / 4);
    }
  }

  // How many of the tile's positions come before the first whose values are not finite (in BF16).
  int64_t NumGoodPositions(int64_t num_positions) const {
    constexpr float kLimit = 3.38e38f;
    int64_t count = 0;
    while (count < num_positions && machine_.ops.is_within(ExpandedValues(count), kLimit, shape_.v_head_dim)) ++count;
    return count;
  }

  const float* ExpandedValues(int64_t position) const {
    return expanded_ + position * expanded_stride_ + skipped_ + shape_.qk_nope_head_dim;
  }

  // Values: positions are the inputs here.  Those from num_positions on are zeros.
  void MakeValues(int64_t num_positions) {
    const int64_t positions_per_line = dtype_ == DType::kBF16 ? 2 : 1;
    const int64_t stride_words = values_.panel_stride / 4;
    const auto row_of = [&](int64_t p) { return p < num_positions ? ExpandedValues(p) : zeros_; };
    for (int64_t p = 0; p < RoundUp(num_positions, kPanelOutputs); p += positions_per_line) {
      uint32_t* line = reinterpret_cast<uint32_t*>(value_panels_) + p / positions_per_line * kPanelOutputs;
      if (dtype_ == DType::kBF16) {
        machine_.ops.round_and_interleave(line, stride_words, row_of(p), row_of(p + 1), shape_.v_head_dim);
        continue;
      }
      for (int64_t c = 0; c < shape_.v_head_dim; c += kPanelOutputs) {
        const int64_t count = std::min<int64_t>(kPanelOutputs, shape_.v_head_dim - c);
        std::memcpy(line + c / kPanelOutputs * stride_words, row_of(p) + c, static_cast<size_t>(count) * sizeof(float));
      }
    }
  }

  // Those of rows [first, end) that see the tile: rows before it do not.
  void AttendTile(int64_t tile, int64_t first, int64_t end) {
    for (int64_t row = std::max(first, tile - first_position_); row < end; row += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, end - row);
      const int64_t last_visible = std::min(kTilePositions, first_position_ + row + count - tile);
      AttendRows(tile, row, count, RoundUp(last_visible, kPanelOutputs));
    }
  }

  // Rows [row, row + count) over the tile's first `num_positions` positions: a step of the online softmax.
  void AttendRows(int64_t tile, int64_t row, int64_t count, int64_t num_positions) {
    Product score{&keys_, {queries_ + row * query_bytes_, query_bytes_}, count, 0, num_positions / kPanelOutputs};
    score.out = scores_;
    score.out_stride = kTilePositions;
    score.prefetches_next = false;
    Multiply(machine_, score);

    for (int64_t r = 0; r < count; ++r)
      Soften(r, row + r, std::min(num_positions, first_position_ + row + r + 1 - tile), num_positions);
    machine_.ops.exp_to_f32(decay_, decay_, 1.0f, 0.0f, count);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t place = row + r;
      norm_[place] = norm_[place] * decay_[r] + row_sum_[r];
      if (decay_[r] != 1.0f) {
        float* sum = sums_ + place * shape_.v_head_dim;
        machine_.ops.scale(sum, sum, decay_[r], shape_.v_head_dim);
      }
    }

    TileProduct product = ValueProduct(num_positions);
    product.x = probabilities_;
    product.x_stride_bytes = probability_bytes_;
    product.num_rows = static_cast<int32_t>(count);
    product.out = sums_ + row * shape_.v_head_dim;
    product.out_stride = shape_.v_head_dim;
    dtype_ == DType::kBF16 ? machine_.tiles.multiply_bf16(product) : machine_.tiles.multiply_f32(product);
  }

  // The probabilities of one row; its new maximum and, in decay_, the logarithm of what the old sums shrink by.
  void Soften(int64_t r, int64_t place, int64_t num_visible, int64_t num_positions) {
    const float* scores = scores_ + r * kTilePositions;
    const float max = std::max(max_[place], machine_.ops.max(scores, num_visible) * shape_.softmax_scale);
    decay_[r] = max_[place] - max;
    max_[place] = max;
    row_sum_[r] = Exponentiate(machine_, dtype_, probabilities_ + r * probability_bytes_, scores, shape_.softmax_scale,
                               max, num_visible, num_positions);
  }

  TileProduct ValueProduct(int64_t num_positions) const {
    TileProduct product;
    product.panels = value_panels_;
    product.panel_bytes = values_.panel_stride;
    product.num_inputs = static_cast<int32_t>(num_positions);
    product.num_outputs = shape_.v_head_dim;
    product.accumulates = true;
    return product;
  }

  void WriteResults(int64_t first_row) {
    for (int64_t r = 0; r < num_rows_; ++r) {
      float* out = static_cast<float*>(tensors_.out.data) + (first_row + r) * tensors_.out.row_stride +
                   int64_t{head_} * shape_.v_head_dim;
      machine_.ops.scale(out, sums_ + r * shape_.v_head_dim, 1.0f / norm_[r], shape_.v_head_dim);
    }
  }

  const Machine& machine_;
  const AttentionTensors& tensors_;
  const MlaShape& shape_;
  const Matrix& kv_b_;
  const DType dtype_;
  const int64_t head_outputs_;
  const int64_t expanded_stride_;
  const int64_t query_bytes_, probability_bytes_, latent_bytes_;

  float* expanded_;  // [tile positions][expanded_stride_]
  uint8_t* latents_;
  float* latent_scales_;
  float* latent_row_;
  Matrix keys_, values_;
  uint8_t *key_panels_, *value_panels_;
  uint8_t* key_rows_;
  float* scores_;           // [rows at once][tile positions]
  uint8_t* probabilities_;  // operand rows
  float* decay_;
  float* zeros_;  // the values of a position that is not there
  float row_sum_[kRowsAtOnce];
  uint8_t* queries_;  // operand rows of the whole task
  float* sums_;       // [rows][dv]
  float *max_, *norm_;
  int64_t num_bytes_ = 0;

  int32_t head_ = 0;
  int64_t num_rows_ = 0, first_position_ = 0, skipped_ = 0;
};

void PlanPrompt(AttentionPlan& plan, const AttentionTensors& tensors, int32_t num_threads) {
  plan.prompt.clear();
  const std::vector<SequenceRows>& sequences = tensors.batch.sequences;
  int64_t num_heads = 0;
  for (const SequenceRows& sequence : sequences)
    num_heads += sequence.num_prompt_rows > 0 ? tensors.shape.num_heads : 0;
  if (num_heads == 0) return;
  // Each cut of a head's rows expands the context again, so there are no more cuts than threads need.
  const int64_t wanted_cuts = (2 * num_threads + num_heads - 1) / num_heads;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const int32_t num_rows = sequences[s].num_prompt_rows;
    const int64_t cuts =
        std::min<int64_t>(num_rows, std::max((num_rows + kMaxPromptRows - 1) / kMaxPromptRows, wanted_cuts));
    for (int32_t head = 0; head < tensors.shape.num_heads; ++head) {
      for (int64_t cut = 0; cut < cuts; ++cut) {
        const int32_t first = static_cast<int32_t>(cut * num_rows / cuts);
        const int32_t end = static_cast<int32_t>((cut + 1) * num_rows / cuts);
        plan.prompt.push_back({static_cast<int32_t>(s), head, first, end - first});
      }
    }
  }
}

}  // namespace

void AttendPrompt(Machine& machine, AttentionPlan& plan, const AttentionTensors& tensors, const Matrix& kv_b) {
  const MlaShape& shape = tensors.shape;
  WEIR_CHECK(kv_b.inputs == shape.kv_lora_rank);
  WEIR_CHECK(kv_b.outputs == int64_t{shape.num_heads} * (shape.qk_nope_head_dim + shape.v_head_dim));
  PlanPrompt(plan, tensors, machine.pool.num_threads());
  if (plan.prompt.empty()) return;
  const int64_t bytes = PromptHead(machine, tensors, kv_b, nullptr).num_bytes();
  uint8_t* scratch = machine.Scratch<uint8_t>(bytes);
  if (scratch == nullptr) return;
  machine.pool.Run(static_cast<int64_t>(plan.prompt.size()), [&](int64_t task, int32_t thread) {
    PromptHead(machine, tensors, kv_b, scratch + thread * bytes).Run(plan.prompt[task]);
  });
}

}  // namespace weir::kernels::cpu
